"""One thread for every test: the suite is timed on two shared cores."""

import torch

torch.set_num_threads(1)
