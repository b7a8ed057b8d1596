"""How fedpresence is packaged: data only."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="fedpresence",
    version="0.1.0",
    description="Federation-aware presence for Matrix: cheap, private, and never late",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["fedpresence", "fedpresence.*"]),
    package_data={"fedpresence": ["py.typed", "storage/schema.sql"]},
    install_requires=[
        "Twisted[tls]>=25.5",
        "httptools>=0.6.4",
        "treq>=24.9",
        "hyperlink>=21",
        "signedjson>=1.1.4",
        "canonicaljson>=2.0",
        "PyYAML>=6.0",
        "prometheus_client>=0.20",
        "PyNaCl>=1.5",
        "cryptography>=42",
        "pyOpenSSL>=24.2",
        "service-identity>=24.1",
        "unpaddedbase64>=2.1",
        "zope.interface>=6",
    ],
    extras_require={
        "test": ["pytest>=8", "hypothesis>=6.100"],
        "interop": ["matrix-nio>=0.25"],
        "dev": ["ruff>=0.6", "mypy>=1.11", "types-PyYAML"],
    },
    entry_points={
        "console_scripts": ["fedpresence = fedpresence.ops.cli:main"],
        "pytest11": ["fedpresence = fedpresence.testing.pytest_plugin"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Pytest",
        "Framework :: Twisted",
        "Intended Audience :: System Administrators",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Communications :: Chat",
        "Typing :: Typed",
    ],
)
