"""Multilingual machine unlearning around the Hugging Face Trainer."""
