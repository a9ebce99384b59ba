// The element types of the kernels' arguments, without torch.
#pragma once

namespace fastnas {

enum class Dtype : int { float32, float64, bfloat16 };

}  // namespace fastnas
