// The driver's library, as far as this package and Jittor ask it for devices.
#include <string.h>

#include "device.h"

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = fake_driver(); return 0; }
int cuDeviceGetCount(int *count) { *count = fake_devices(); return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "fake", size); return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = fake_memory(); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? fake_capability() / 10 : attribute == 76 ? fake_capability() % 10 : 1;
    return 0;
}
