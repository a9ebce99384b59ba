// The Python module fastnas_C: what was built and what runs. Loading it also registers the ops
// (registry.cpp), so torch must be imported first; it never touches CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "build_info.h"  // written by setup.py
#include "cpu/allocator.h"
#include "cpu/capability.h"
#include "work.h"

namespace py = pybind11;
using fastnas::cpu::kCapabilityNames;

PYBIND11_MODULE(fastnas_C, m) {
  m.doc() = "The native part of fastnas; use it through fastnas.ops and fastnas.build_info.";
  m.attr("__version__") = FASTNAS_VERSION;

  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = FASTNAS_VERSION;
        info["commit"] = FASTNAS_COMMIT;
        info["torch"] = FASTNAS_TORCH;
        info["cuda"] = FASTNAS_CUDA;
        info["cuda_architectures"] = FASTNAS_CUDA_ARCHITECTURES;
        info["compiler"] = FASTNAS_COMPILER;
        info["sanitizers"] = FASTNAS_SANITIZERS;
        return info;
      },
      "What this build was made of, as text.");

  m.def(
      "cpu_capability", [] { return kCapabilityNames[static_cast<int>(fastnas::cpu::capability())]; },
      "The level of the CPU kernels in force: baseline, avx2 or avx512.");

  m.def(
      "cpu_capabilities",
      [] {
        std::vector<const char*> names;
        for (int level = 0; level <= static_cast<int>(fastnas::cpu::detected_capability()); ++level)
          names.push_back(kCapabilityNames[level]);
        return names;
      },
      "The levels that this CPU can run, lowest first.");

  m.def(
      "records",
      [] {
        py::dict ops;
        for (const auto& [name, r] : fastnas::records())
          ops[name.c_str()] = py::make_tuple(r.calls, r.seconds, r.flops, r.bytes);
        return ops;
      },
      "What each native op has done in this process: calls, seconds, floating-point operations and bytes.");

  m.def("keep_freed_memory", &fastnas::cpu::keep_freed_memory,
        "Keeps freed memory in the process, unless FASTNAS_KEEP_MEMORY=0.");
}
