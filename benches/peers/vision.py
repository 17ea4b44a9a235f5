#!/usr/bin/env python3
"""Benchmarks image models, official architectures, random weights, two threads, against PyTorch, alternating.

    cargo build --release
    python benches/peers/vision.py target/release/fauna --rounds 5
    python benches/peers/vision.py target/release/fauna --only clip

CLIP ViT-B/32 and IDEFICS-9B with fewer layers (4 of 32, 2 of them with cross-attention, 4 vision layers) against
transformers; DALL·E mini and its VQGAN against min-dalle. PyTorch computes in float32, each task in a process of its own,
which is loaded and warmed up once, and stopped (SIGSTOP) while `fauna` runs; `fauna bench` is a new process in each turn
and does its own warm-up. The ratio of a round is the time of PyTorch divided by that of `fauna`, so that `fauna` is faster
above 1.
"""

from turns import Work, config_of, main

# Text tokens of the prompt in addition to the images, and new tokens.
PROMPT, NEW = 64, 32


WORKS = [
    Work("CLIP ViT-B/32, 32 images", "clip-vit-base-patch32",
         ("--task", "embed", "--tokens", "0", "--images", "1", "--batch", "32"), "clip_pictures"),
    Work("CLIP ViT-B/32, 64 prompts of 77 tokens", "clip-vit-base-patch32",
         ("--task", "forward", "--tokens", "77", "--batch", "64"), "clip_prompts"),
    Work("DALL·E mini, one image of 256 tokens with guidance", "dalle-mini",
         ("--task", "generate", "--tokens", "64"), "dalle_picture"),
    Work("VQGAN, codes to one image", "dalle-mini", ("--task", "decode", "--tokens", "0", "--images", "1"), "vqgan_decode"),
    Work(f"IDEFICS-9B cut, {NEW} tokens after {PROMPT} and an image", "idefics-9b-cut",
         ("--task", "generate", "--tokens", str(PROMPT), "--images", "1", "--new-tokens", str(NEW)), "idefics"),
]


# ---------------------------------------------------------------- PyTorch's side


def clip(config):
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**config_of(config))).eval()


def clip_pictures(torch, config):
    model, pixels = clip(config), torch.rand(32, 3, 224, 224)
    return lambda: model.get_image_features(pixel_values=pixels)


def clip_prompts(torch, config):
    model, ids = clip(config), torch.randint(5, 49000, (64, 77))
    ids[:, -1] = 49407
    return lambda: model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))


def dalle_picture(torch, config):
    """min-dalle's loop: the text encoder, 256 guided decoding steps, the VQGAN decoder."""
    from min_dalle.models import DalleBartDecoder, DalleBartEncoder

    c = config_of(config)
    encoder = DalleBartEncoder(
        layer_count=c["encoder_layers"], embed_count=c["d_model"], attention_head_count=c["encoder_attention_heads"],
        text_vocab_count=c["encoder_vocab_size"], text_token_count=c["max_text_length"],
        glu_embed_count=c["encoder_ffn_dim"], device="cpu").eval()
    decoder = DalleBartDecoder(
        image_vocab_count=c["image_vocab_size"], embed_count=c["d_model"],
        attention_head_count=c["decoder_attention_heads"], glu_embed_count=c["decoder_ffn_dim"],
        layer_count=c["decoder_layers"], device="cpu").eval()
    paint = vqgan_decode(torch, config)
    text = torch.randint(5, 50000, (2, c["max_text_length"]))
    length, settings = c["image_length"], torch.tensor([1.0, 256.0, 10.0])

    def run():
        states = encoder(text)
        mask = text.not_equal(1)[:, None, None, :]
        attention = torch.zeros(c["decoder_layers"], 4, length, c["d_model"])
        tokens = torch.full((1, length + 1), c["decoder_start_token_id"])
        for i in range(length):
            tokens[:, i + 1], attention = decoder.sample_tokens(
                settings=settings, attention_mask=mask, encoder_state=states, attention_state=attention,
                prev_tokens=tokens[:, [i]], token_index=torch.tensor([i]))
        paint()

    return run


def vqgan_decode(torch, config):
    from min_dalle.models import VQGanDetokenizer

    detokenizer = VQGanDetokenizer().eval()
    codes = torch.randint(0, 16384, (1, 256))
    return lambda: detokenizer(False, codes)


def idefics(torch, config):
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    model = IdeficsForVisionText2Text(IdeficsConfig(**config_of(config))).eval()
    ids, pixels = torch.randint(5, 32000, (1, PROMPT)), torch.rand(1, 1, 3, 224, 224)
    seen = torch.ones(1, PROMPT, 1, dtype=torch.long)
    return lambda: model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_attention_mask=seen,
        do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW)


if __name__ == "__main__":
    main(__doc__, WORKS, globals())
