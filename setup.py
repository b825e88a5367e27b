from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

EXTRAS = {
    "deepspeed": ["deepspeed>=0.18", "ninja"],
    "gguf": ["gguf>=0.10"],
    "peft": ["peft>=0.18"],
    # For checkpoints that ship a SentencePiece model and no tokenizer.json.
    "sentencepiece": ["sentencepiece", "protobuf"],
}

setup(
    name="unlearn-trainer",
    version="0.1.0",
    description="Multilingual machine unlearning around the Hugging Face Trainer",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The unlearn-trainer maintainers",
    keywords=["machine unlearning", "multilingual", "language models", "memorization", "transformers"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["unlearn_trainer", "unlearn_trainer.*"]),
    py_modules=["run_unlearn"],
    # The evaluate modules are files that evaluate.load copies, not a package to import.
    package_data={
        "unlearn_trainer": [
            "py.typed",
            "config/presets/*.json",
            "data/*.json",
            "evaluation/modules/*/*.py",
            "report/templates/*",
        ]
    },
    entry_points={"console_scripts": ["unlearn-trainer=unlearn_trainer.__main__:main"]},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17,<6",
        "datasets>=4.0",
        "evaluate>=0.4.6",
        "accelerate>=1.10",
        "safetensors>=0.5",
        "tokenizers",
        "numpy",
        "tqdm",
        "regex",
        "rapidfuzz>=3.9",
        "datasketch>=1.6",
        "rich>=13.7",
        "scipy>=1.15",
        "langcodes>=3.4",
        "language_data>=1.2",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "xxhash",
    ],
    extras_require={
        **EXTRAS,
        "dev": [
            *("pytest>=9", "pytest-timeout", "hypothesis", "ruff>=0.14", "mypy>=1.19"),
            *EXTRAS["sentencepiece"],
        ],
    },
)
