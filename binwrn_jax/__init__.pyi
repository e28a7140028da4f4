"""The public names for type checkers: what ``__init__.py`` imports at first use."""

from binwrn_jax.data.dataset import Arrays as Arrays
from binwrn_jax.data.dataset import Dataset as Dataset
from binwrn_jax.data.dataset import ImageOptions as ImageOptions
from binwrn_jax.data.on_device import DeviceData as DeviceData
from binwrn_jax.data.on_device import epoch_order as epoch_order
from binwrn_jax.data.open import load as load
from binwrn_jax.data.open import open_dataset as open_dataset
from binwrn_jax.deploy.formats import open_model as open_model
from binwrn_jax.deploy.jax_runtime import load_packed as load_packed
from binwrn_jax.deploy.own_network import export as export
from binwrn_jax.errors import UserError as UserError
from binwrn_jax.evaluation import cross_entropy as cross_entropy
from binwrn_jax.evaluation import evaluate as evaluate
from binwrn_jax.evaluation import make_eval_step as make_eval_step
from binwrn_jax.evaluation import metric_sums as metric_sums
from binwrn_jax.graph.cost import cost as cost
from binwrn_jax.hub.pretrained import load_pretrained as load_pretrained
from binwrn_jax.nn.binarize import binarize as binarize
from binwrn_jax.nn.binarize import by_path as by_path
from binwrn_jax.nn.layers import BatchNorm as BatchNorm
from binwrn_jax.nn.layers import BinaryConv as BinaryConv
from binwrn_jax.nn.layers import BinaryDense as BinaryDense
from binwrn_jax.nn.rules import RULES as RULES
from binwrn_jax.nn.rules import he_scale as he_scale
from binwrn_jax.nn.rules import sign as sign
from binwrn_jax.nn.wide_resnet import WideResNet as WideResNet
from binwrn_jax.parallel.sharding import make_mesh as make_mesh
from binwrn_jax.store.description import Description as Description
from binwrn_jax.store.model import Model as Model
from binwrn_jax.training.augment import AUGMENTATIONS as AUGMENTATIONS
from binwrn_jax.training.augment import augment as augment
from binwrn_jax.training.config import base_config as base_config
from binwrn_jax.training.loop import train as train
from binwrn_jax.training.moments import dataset_moments as dataset_moments
from binwrn_jax.training.moments import make_moments_step as make_moments_step
from binwrn_jax.training.moments import recompute_moments as recompute_moments
from binwrn_jax.training.optimizer import sgd as sgd
from binwrn_jax.training.recipes import Recipe as Recipe
from binwrn_jax.training.recipes import paper_recipe as paper_recipe
from binwrn_jax.training.resolve import ResolvedRun as ResolvedRun
from binwrn_jax.training.resolve import resolve as resolve
from binwrn_jax.training.schedules import cycle_ends as cycle_ends
from binwrn_jax.training.schedules import sgdr as sgdr
from binwrn_jax.training.schedules import step_decay as step_decay
from binwrn_jax.training.state import TrainState as TrainState
from binwrn_jax.training.state import init_state as init_state
from binwrn_jax.training.step import make_train_step as make_train_step

__version__: str
__all__: list[str]
