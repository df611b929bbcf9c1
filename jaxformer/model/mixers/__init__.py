"""The registry of token mixers: a new one needs a file, and a line in `MIXERS`."""

from jaxformer.model.mixers.attention import Attention, AttentionConfig
from jaxformer.model.mixers.base import MIXERS, Cache, Mixer, MixerConfig, build_mixer
from jaxformer.model.mixers.bidirectional import Bidirectional, BidirectionalConfig
from jaxformer.model.mixers.comba import Comba, CombaConfig
from jaxformer.model.mixers.convolution import Convolution, ConvolutionConfig
from jaxformer.model.mixers.cross_attention import CrossAttention, CrossAttentionConfig
from jaxformer.model.mixers.delta import Delta, DeltaConfig
from jaxformer.model.mixers.delta_product import DeltaProduct, DeltaProductConfig
from jaxformer.model.mixers.differential_attention import (
    DifferentialAttention,
    DifferentialAttentionConfig,
)
from jaxformer.model.mixers.forgetting_attention import (
    ForgettingAttention,
    ForgettingAttentionConfig,
)
from jaxformer.model.mixers.gated_delta import GatedDelta, GatedDeltaConfig
from jaxformer.model.mixers.gated_delta2 import GatedDelta2, GatedDelta2Config
from jaxformer.model.mixers.gla import GLA, GLAConfig
from jaxformer.model.mixers.hgrn import HGRN, HGRNConfig
from jaxformer.model.mixers.hgrn2 import HGRN2, HGRN2Config
from jaxformer.model.mixers.kda import KDA, KDAConfig
from jaxformer.model.mixers.latent_attention import LatentAttention, LatentAttentionConfig
from jaxformer.model.mixers.linear_attention import LinearAttention, LinearAttentionConfig
from jaxformer.model.mixers.mamba import Mamba, MambaConfig
from jaxformer.model.mixers.mamba2 import Mamba2, Mamba2Config
from jaxformer.model.mixers.mamba3 import Mamba3, Mamba3Config
from jaxformer.model.mixers.min_gru import MinGRU, MinGRUConfig
from jaxformer.model.mixers.mlstm import MLSTM, MLSTMConfig
from jaxformer.model.mixers.parallel import Parallel, ParallelConfig
from jaxformer.model.mixers.retention import Retention, RetentionConfig
from jaxformer.model.mixers.rglru import RGLRU, RGLRUConfig
from jaxformer.model.mixers.rwkv6 import RWKV6, RWKV6Config
from jaxformer.model.mixers.rwkv7 import RWKV7, RWKV7Config
from jaxformer.model.mixers.s4d import S4D, S4DConfig
from jaxformer.model.mixers.scanned import Scanned, ScannedConfig
from jaxformer.model.mixers.slstm import SLSTM, SLSTMConfig
from jaxformer.model.mixers.stick_breaking_attention import (
    StickBreakingAttention,
    StickBreakingAttentionConfig,
)
from jaxformer.model.mixers.tensor_product_attention import (
    TensorProductAttention,
    TensorProductAttentionConfig,
)

MIXERS |= {
    AttentionConfig: Attention,
    LatentAttentionConfig: LatentAttention,
    TensorProductAttentionConfig: TensorProductAttention,
    DifferentialAttentionConfig: DifferentialAttention,
    ForgettingAttentionConfig: ForgettingAttention,
    StickBreakingAttentionConfig: StickBreakingAttention,
    RetentionConfig: Retention,
    GLAConfig: GLA,
    DeltaConfig: Delta,
    GatedDeltaConfig: GatedDelta,
    CombaConfig: Comba,
    KDAConfig: KDA,
    GatedDelta2Config: GatedDelta2,
    DeltaProductConfig: DeltaProduct,
    RWKV6Config: RWKV6,
    RWKV7Config: RWKV7,
    Mamba2Config: Mamba2,
    Mamba3Config: Mamba3,
    LinearAttentionConfig: LinearAttention,
    HGRN2Config: HGRN2,
    MLSTMConfig: MLSTM,
    MinGRUConfig: MinGRU,
    HGRNConfig: HGRN,
    MambaConfig: Mamba,
    RGLRUConfig: RGLRU,
    S4DConfig: S4D,
    SLSTMConfig: SLSTM,
    ParallelConfig: Parallel,
    BidirectionalConfig: Bidirectional,
    ScannedConfig: Scanned,
    ConvolutionConfig: Convolution,
    CrossAttentionConfig: CrossAttention,
}


__all__ = ["MIXERS", "Cache", "Mixer", "MixerConfig", "build_mixer"]
