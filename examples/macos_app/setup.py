"""Build Moshi.app: pip install py2app, then python setup.py py2app (-A for one that uses this folder)."""

from __future__ import annotations

# Without the first entry macOS gives the application silence instead of the microphone, and never asks.
PLIST = {
    "NSMicrophoneUsageDescription": "Moshi listens to you while you talk.",
    "CFBundleName": "Moshi",
    "CFBundleIdentifier": "org.example.moshi",
    "LSMinimumSystemVersion": "14.0",
    "NSHighResolutionCapable": True,
}
# Packages whose libraries and data have to lie beside them as files.
PACKAGES = [
    "moshi_mlx",
    "mlx",
    "numpy",
    "sentencepiece",
    "soundfile",
    "_soundfile_data",
    "_sounddevice_data",
    "soxr",
    "livekit",
]
OPTIONS = {"py2app": {"plist": PLIST, "packages": PACKAGES, "includes": ["talk"]}}

if __name__ == "__main__":
    from setuptools import setup

    setup(app=["app.py"], options=OPTIONS, setup_requires=["py2app"])
