"""The model server of a Generation: OpenAI's protocol on one port, vLLM on GPUs, transformers' server elsewhere."""
