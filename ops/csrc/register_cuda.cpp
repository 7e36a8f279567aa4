// The module of the CUDA kernels, a shared object of its own, so that the CPU kernels load on machines without CUDA.
// The operators are in cuda/dcnv3.cpp and cuda/attention.cpp.
#include <Python.h>

#include "cuda/kernels.h"

#ifndef DRIVESTACK_CUDA_ARCHITECTURES
#define DRIVESTACK_CUDA_ARCHITECTURES ""
#endif

constexpr int kInterfaceVersion = 3;  // see INTERFACE_VERSION in ops/dispatch/backend.py

#if defined(_WIN32)
#define DRIVESTACK_EXPORT extern "C" __declspec(dllexport)
#else
#define DRIVESTACK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

DRIVESTACK_EXPORT int drivestack_interface_version() { return kInterfaceVersion; }
DRIVESTACK_EXPORT const char* drivestack_cuda_architectures() { return DRIVESTACK_CUDA_ARCHITECTURES; }
// For tests: images in one launch, and elements of an image from which on offsets have 64 bits.
DRIVESTACK_EXPORT void drivestack_cuda_set_limits(int64_t images, int64_t elements) {
  drivestack::cuda::limits() = {images, elements};
}

static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module_definition); }
