"""Random weights for measuring and testing without a checkpoint."""

from __future__ import annotations

from streamserve.models.architectures.base import CausalModel
from streamserve.models.layers.norm import LayerNorm, RmsNorm
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.noise import draw, tile


def randomize(model: CausalModel) -> None:
    """Fill every weight with normal noise of standard deviation 0.02, norms with one, in place; the same each time."""
    norms = [module for module in model.modules() if isinstance(module, RmsNorm | LayerNorm)]
    for norm in norms:
        norm.weight.fill_(1.0)
    forms = [linear.form for linear in model.linears()]
    # All weights share a place, and those of linears the model's dtype.
    noise = draw().to(next(forms[0].parameters()).device, forms[0].dtype)
    for form in forms:
        form.randomize(noise)
    experts = [module for module in model.modules() if isinstance(module, ExpertsForm)]
    for form_of_experts in experts:
        form_of_experts.randomize(noise)
    done = {id(parameter) for module in (*norms, *forms, *experts) for parameter in module.parameters()}
    done -= {id(norm.bias) for norm in norms if isinstance(norm, LayerNorm)}
    for parameter in model.parameters():
        if id(parameter) not in done:
            tile(parameter, noise)
