/* The calls of CUDA's driver that cuda_ipc.py makes, with files in the folder CUDA_DRIVER_FOLDER in the place of a GPU's memory.

   Types, flags and error codes are those of cuda.h. As on a GPU, memory isn't zeroed, a handle is opened by other processes
   alone, and what is allocated isn't closed, nor freed what is attached. */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef unsigned long long CUdeviceptr;
typedef struct {
    char reserved[64];
} CUipcMemHandle;

enum { SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT = 201, LAZY_PEER_ACCESS = 1, MAX_MAPPED = 16 };
enum { ALLOCATED = 1, ATTACHED };
#define LARGEST ((size_t)1 << 30)

static struct {
    void *place;
    size_t size;
    char name[40];
    int kind; /* 0: this entry is free */
} mapped[MAX_MAPPED];
static int made;

static int find(CUdeviceptr pointer, int kind) {
    for (int i = 0; i < MAX_MAPPED; i++)
        if (mapped[i].kind == kind && (kind == 0 || (CUdeviceptr)mapped[i].place == pointer)) return i;
    return -1;
}

static const char *path(const char *name) {
    static char whole[4096];
    snprintf(whole, sizeof whole, "%s/%s", getenv("CUDA_DRIVER_FOLDER"), name);
    return whole;
}

static int map(CUdeviceptr *pointer, const char *name, int file, size_t size, int kind) {
    int i = find(0, 0);
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (i < 0 || place == MAP_FAILED) return OUT_OF_MEMORY;
    mapped[i].place = place, mapped[i].size = size, mapped[i].kind = kind;
    strcpy(mapped[i].name, name);
    *pointer = (CUdeviceptr)place;
    return SUCCESS;
}

static int unmap(CUdeviceptr pointer, int kind) {
    int i = find(pointer, kind);
    if (i < 0) return INVALID_VALUE;
    munmap(mapped[i].place, mapped[i].size);
    if (kind == ALLOCATED) unlink(path(mapped[i].name));
    mapped[i].kind = 0;
    return SUCCESS;
}

int cuMemAlloc_v2(CUdeviceptr *pointer, size_t size) {
    char name[40];
    if (size == 0) return INVALID_VALUE;
    if (size > LARGEST) return OUT_OF_MEMORY;
    sprintf(name, "memory-%d-%d", (int)getpid(), made++);
    int file = open(path(name), O_RDWR | O_CREAT | O_EXCL, 0600);
    if (file < 0 || ftruncate(file, (off_t)size) != 0) return OUT_OF_MEMORY;
    int code = map(pointer, name, file, size, ALLOCATED);
    if (code == SUCCESS) memset((void *)*pointer, 0xff, size);
    return code;
}

int cuMemFree_v2(CUdeviceptr pointer) { return unmap(pointer, ALLOCATED); }

int cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer) {
    int i = find(pointer, ALLOCATED);
    if (i < 0) return INVALID_VALUE;
    memset(handle, 0xab, sizeof *handle);
    strcpy(handle->reserved, mapped[i].name);
    return SUCCESS;
}

int cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags) {
    struct stat found;
    char own[40];
    if (flags != LAZY_PEER_ACCESS || handle.reserved[63] != (char)0xab) return INVALID_VALUE;
    sprintf(own, "memory-%d-", (int)getpid());
    if (strncmp(handle.reserved, own, strlen(own)) == 0) return INVALID_CONTEXT;
    int file = open(path(handle.reserved), O_RDWR);
    if (file < 0) return INVALID_VALUE;
    fstat(file, &found);
    return map(pointer, handle.reserved, file, (size_t)found.st_size, ATTACHED);
}

int cuIpcCloseMemHandle(CUdeviceptr pointer) { return unmap(pointer, ATTACHED); }

int cuMemHostRegister_v2(void *place, size_t size, unsigned int flags) {
    return place == NULL || size == 0 || flags != 0 ? INVALID_VALUE : mlock(place, size) == 0 ? SUCCESS : OUT_OF_MEMORY;
}

int cuGetErrorString(int code, const char **text) {
    *text = code == INVALID_VALUE ? "invalid argument" : code == INVALID_CONTEXT ? "invalid device context" : NULL;
    return *text == NULL ? INVALID_VALUE : SUCCESS;
}

/* For tests: how many places of a kind are mapped in this process. */
int number_mapped(int kind) {
    int number = 0;
    for (int i = 0; i < MAX_MAPPED; i++) number += mapped[i].kind == kind;
    return number;
}
