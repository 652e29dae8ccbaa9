"""A CLIP's forward pass written by the published names and configuration of Hugging Face's `CLIPModel` alone."""

import json

import torch
from safetensors.torch import load_file
from torch.nn import functional

ACTIVATION = {"gelu": functional.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


class Clip:
    """Features as `get_image_features` and `get_text_features` give them, brought to length 1."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.t = load_file(folder / "model.safetensors")

    def _norm(self, x, name, eps):
        return functional.layer_norm(x, x.shape[-1:], self.t[f"{name}.weight"], self.t[f"{name}.bias"], eps)

    def _linear(self, x, name):
        return functional.linear(x, self.t[f"{name}.weight"], self.t[f"{name}.bias"])

    def _layers(self, x, tower, config, causal):
        eps, heads = config["layer_norm_eps"], config["num_attention_heads"]
        for number in range(config["num_hidden_layers"]):
            at = f"{tower}.encoder.layers.{number}"
            y = self._norm(x, f"{at}.layer_norm1", eps)
            parts = [self._linear(y, f"{at}.self_attn.{name}_proj").unflatten(-1, (heads, -1)) for name in "qkv"]
            q, k, v = (part.transpose(1, 2) for part in parts)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
            x = x + self._linear(y, f"{at}.self_attn.out_proj")
            y = self._linear(self._norm(x, f"{at}.layer_norm2", eps), f"{at}.mlp.fc1")
            x = x + self._linear(ACTIVATION[config["hidden_act"]](y), f"{at}.mlp.fc2")
        return x

    def image(self, pixel_values):
        config, at = self.config["vision_config"], "vision_model"
        patches = functional.conv2d(
            pixel_values, self.t[f"{at}.embeddings.patch_embedding.weight"], stride=config["patch_size"]
        )
        patches = patches.flatten(2).transpose(1, 2)
        first = self.t[f"{at}.embeddings.class_embedding"].expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.t[f"{at}.embeddings.position_embedding.weight"]
        x = self._layers(self._norm(x, f"{at}.pre_layrnorm", config["layer_norm_eps"]), at, config, False)
        pooled = self._norm(x[:, 0], f"{at}.post_layernorm", config["layer_norm_eps"])
        return functional.normalize(functional.linear(pooled, self.t["visual_projection.weight"]), dim=-1)

    def text(self, input_ids):
        config, at = self.config["text_config"], "text_model"
        x = self.t[f"{at}.embeddings.token_embedding.weight"][input_ids]
        x = x + self.t[f"{at}.embeddings.position_embedding.weight"][: input_ids.shape[1]]
        x = self._norm(self._layers(x, at, config, True), f"{at}.final_layer_norm", config["layer_norm_eps"])
        end = (input_ids == config["eos_token_id"]).int().argmax(dim=-1)
        pooled = x[torch.arange(len(x)), end]
        return functional.normalize(functional.linear(pooled, self.t["text_projection.weight"]), dim=-1)

    def logits(self, pixel_values, input_ids):
        return self.t["logit_scale"].exp() * self.image(pixel_values) @ self.text(input_ids).T
