// The module of the CPU kernels, on torch's stable ABI: one binary serves many torch and Python versions. The operators
// are in register_dcnv3.cpp and register_ms_deform_attn.cpp.
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
DRIVESTACK_EXPORT int drivestack_choose_instruction_set(const char* name) { return drivestack::choose_kernels(name); }
// Images of more elements than this take the path with 64-bit offsets (tests lower it).
DRIVESTACK_EXPORT void drivestack_set_largest_narrow_image(int64_t elements) {
  drivestack::largest_narrow_image() = elements;
}

static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module_definition); }
