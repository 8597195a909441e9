"""A model's cache of a prompt, copied for the beams of transformers' generate(), which would read it once a beam."""

from typing import Any


def has_plain_cache(model: Any) -> bool:
    """Whether generate() keeps each layer's whole keys and values: no sliding window, no recurrent state, and no other
    cache that the model's own generation settings ask for."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    settings = model.generation_config
    if settings.use_cache is False or settings.cache_implementation or settings.prompt_lookup_num_tokens:
        return False
    try:
        layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # a configuration that has no such cache
        return False
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def copied_for_beams(read: Any, num_beams: int) -> dict[str, Any]:
    """generate()'s argument with the cache, one row for each beam; empty when `read` has no cache of transformers'."""
    from transformers.cache_utils import Cache

    cache = getattr(read, "past_key_values", None)
    if not isinstance(cache, Cache):
        return {}
    cache.batch_repeat_interleave(num_beams)
    return {"past_key_values": cache}
