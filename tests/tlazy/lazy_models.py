"""Models that several tests of lazy layers build."""

import torch


class Scale(torch.nn.Module):
    def forward(self, x):
        return x * self.weight


class LazyScale(torch.nn.modules.lazy.LazyModuleMixin, Scale):
    """A user's own lazy module, by torch's mixin."""

    cls_to_become = Scale

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.UninitializedParameter()

    def initialize_parameters(self, x):
        self.width = x.shape[-1]
        self.weight.materialize((self.width,))
        torch.nn.init.constant_(self.weight, 3)
