// The module of the CPU kernels, on torch's stable ABI: one binary runs with many torch and Python versions. The
// operators are in register_dcnv3.cpp, register_ms_deform_attn.cpp and register_norm.cpp.
#include <Python.h>

#include "cpu/kernels.h"

#if defined(_WIN32)
#define DRIVESTACK_EXPORT extern "C" __declspec(dllexport)
#else
#define DRIVESTACK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

constexpr int kInterfaceVersion = 3;  // see INTERFACE_VERSION in ops/dispatch/backend.py

DRIVESTACK_EXPORT int drivestack_interface_version() { return kInterfaceVersion; }
DRIVESTACK_EXPORT const char* drivestack_instruction_set() { return drivestack::kernels().name; }

static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module_definition); }
