"""Slow twins of the public code's pieces, written from its formulas: CLIP, LoRA, losses, ensemble and routing.

Nothing here uses open_clip or the package: weights are dicts of tensors by the names that both share, in any dtype.
"""

import math

import torch


def layer_norm(x, weights, name):
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def linear(x, weights, name, lora=None):
    """x W^T + b, and with LoRA the public module's: scaling * (x A) B, A [in, rank], B [rank, out]."""
    found = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    if lora and f"{name}.weight" in lora:
        a, b = lora[f"{name}.weight"]
        found = found + (1 / a.shape[1] ** 0.5) * ((x @ a) @ b)
    return found


def attention(x, weights, name, heads, causal):
    batch, length, width = x.shape
    packed = x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"]
    q, k, v = (part.view(batch, length, heads, -1).transpose(1, 2) for part in packed.split(width, dim=-1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(width / heads)
    if causal:
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, width)
    return linear(mixed, weights, f"{name}.out_proj")


def transformer(x, weights, name, heads, causal, lora):
    layers = 1 + max(
        int(key.split(".")[name.count(".") + 2]) for key in weights if key.startswith(f"{name}.resblocks.")
    )
    for layer in range(layers):
        block = f"{name}.resblocks.{layer}"
        x = x + attention(layer_norm(x, weights, f"{block}.ln_1"), weights, f"{block}.attn", heads, causal)
        hidden = gelu(linear(layer_norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc", lora))
        x = x + linear(hidden, weights, f"{block}.mlp.c_proj", lora)
    return x


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def encode_image(weights, images, lora=None, heads=2):
    kernel = weights["visual.conv1.weight"]
    patches = torch.nn.functional.conv2d(images, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    first = weights["visual.class_embedding"].expand(len(images), 1, -1)
    x = torch.cat([first, patches], dim=1) + weights["visual.positional_embedding"]
    x = transformer(layer_norm(x, weights, "visual.ln_pre"), weights, "visual.transformer", heads, False, lora)
    return unit(layer_norm(x[:, 0], weights, "visual.ln_post") @ weights["visual.proj"])


def encode_text(weights, tokens, lora=None, heads=2):
    x = weights["token_embedding.weight"][tokens] + weights["positional_embedding"]
    x = layer_norm(transformer(x, weights, "transformer", heads, True, lora), weights, "ln_final")
    return unit(x[torch.arange(len(tokens)), tokens.argmax(dim=-1)] @ weights["text_projection"])


def cross_entropy(logits, labels, smoothing):
    """(1 - s) of the label's and s of the mean negative log-likelihood."""
    log_p = logits.log_softmax(dim=1)
    own = log_p[torch.arange(len(labels)), labels]
    return -((1 - smoothing) * own + smoothing * log_p.mean(dim=1)).mean()


def distillation(teacher, student, temperature):
    target = (teacher / temperature).softmax(dim=1)
    return -(target * (student / temperature).log_softmax(dim=1)).sum(dim=1).mean() * temperature**2


def classification(weights, images, labels, tokens, scale, smoothing, lora=None):
    logits = scale * encode_image(weights, images, lora) @ encode_text(weights, tokens, lora).T
    return cross_entropy(logits, labels, smoothing)


def distilled(weights, teacher, images, tokens, scale, temperature):
    """ZSCL's image loss and text loss: both models' images against the teacher's texts, by rows and by columns."""
    texts = encode_text(teacher, tokens)
    ours, theirs = (scale * encode_image(model, images) @ texts.T for model in (weights, teacher))
    return distillation(theirs, ours, temperature) + distillation(theirs.T, ours.T, temperature)


def squared_distance(weights, before):
    return sum(((weights[name] - before[name]) ** 2).sum() for name in before)


def ensemble(start, after_each_iteration, every):
    """The mean of the start and the weights after the iterations 0, every, 2 every, ..., one iteration at a time."""
    mean, count = {name: tensor.clone() for name, tensor in start.items()}, 0
    for iteration, weights in enumerate(after_each_iteration):
        if iteration % every == 0:
            count += 1
            mean = {name: (tensor * count + weights[name]) / (count + 1) for name, tensor in mean.items()}
    return mean


def adamw_first_step(parameter, gradient, rate, beta2=0.999, eps=1e-8):
    """AdamW's first step without weight decay: both moments, corrected for their start at 0."""
    first, second = (1 - 0.9) * gradient, (1 - beta2) * gradient**2
    return parameter - rate * (first / (1 - 0.9)) / ((second / (1 - beta2)).sqrt() + eps)


def prototypes(images, labels, texts_by_template):
    """Of theta0's features: [N, D] of images, and of the prompts a tensor [C, D] for each template."""
    found = []
    for k in range(len(texts_by_template[0])):
        text = torch.stack([texts[k] for texts in texts_by_template]).mean(dim=0)
        own = images[labels == k]
        found.append(unit((own.mean(dim=0) + text) / 2) if len(own) else unit(text))
    return torch.stack(found)


def aggregated(base, prototypes_by_task, logits_by_model, most):
    """Image by image: theta0 first, then the tasks by their most similar prototype; the mean of `most` logits."""
    found = []
    for image, feature in enumerate(base):
        similar = torch.stack([(own @ feature).max() for own in prototypes_by_task])
        order = [0, *(1 + int(task) for task in similar.argsort(descending=True))][:most]
        found.append(torch.stack([logits_by_model[model][image] for model in order]).mean(dim=0))
    return torch.stack(found)
