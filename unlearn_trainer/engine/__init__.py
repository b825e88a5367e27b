"""What differs between plain processes, DeepSpeed ZeRO and FSDP2."""
