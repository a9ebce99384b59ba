// One image of one source through all of its branches, forward or backward. The source is brought once into
// padded planes in the second cache; then each branch goes tile by tile (some rows of the output), a tile's
// depthwise outputs and gradients staying in the first cache.
// clang-format off: in the order of their use
#include "cpu/channels.h"
#include "cpu/store_moments.h"
#include "cpu/tile_matmul.h"
#include "separable_stage/depthwise.h"
#include "separable_stage/dense.h"
#include "separable_stage/planes.h"
#include "separable_stage/forward.h"
#include "separable_stage/backward.h"
// clang-format on
