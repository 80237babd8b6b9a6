"""In Torch-Pruning's environment: a model folder (JSON on standard input) -> what each unit is tied to."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
import torch_pruning as tp
import transformers


class _Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return only the logits, since the tracer needs a tensor."""
        return self.model(input_ids=ids, use_cache=False).logits


def main() -> None:
    """Ask for the group of every MLP unit and of every head."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    whole = _Logits(transformers.AutoModelForCausalLM.from_pretrained(json.load(sys.stdin)).eval())
    graph = tp.DependencyGraph().build_dependency(whole, torch.tensor([[5, 6, 7, 8]]))
    names = {module: name for name, module in whole.named_modules()}
    config = whole.model.config
    size = config.hidden_size // config.num_attention_heads
    found: dict[str, list[Any]] = {"mlp": [], "heads": []}
    for layer in whole.model.model.layers:
        asked = {
            "mlp": [(layer.mlp.up_proj, [unit]) for unit in range(config.intermediate_size)],
            "heads": [
                (layer.self_attn.q_proj, list(range(head * size, (head + 1) * size)))
                for head in range(config.num_attention_heads)
            ],
        }
        for kind, units in asked.items():
            groups = []
            for module, rows in units:
                group = graph.get_pruning_group(module, tp.prune_linear_out_channels, idxs=rows)
                parts = [
                    (names[each.target.module].rpartition("layers.")[2].partition(".")[2],
                     0 if "out" in each.handler.__name__ else 1, sorted(indices))
                    for each, indices in group if names.get(each.target.module)
                ]  # fmt: skip
                groups.append(sorted(parts))
            found[kind].append(groups)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
