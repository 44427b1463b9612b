"""A server that speaks Ollama's HTTP API, with a model of a shared GPU where the real one has the GPU.

Started as `python -m pytest_llmperf.emulator serve`; nothing else of the package imports it.
"""
