// Counts what is called. Counters live in the fake libcudart, which the other fake libraries are linked with.
#pragma once

enum { FAKE_CALL, FAKE_KERNEL, FAKE_PRODUCT, FAKE_COPY };

typedef struct fake_counter {
    const char *name;
    long calls;     // outside of a stream capture
    long captured;  // while a stream was captured into a graph
    int kind;
    struct fake_counter *next;
} fake_counter;

void fake_called(fake_counter *counter);  // adds it to the list at its first call

#define CALLED(kind, name)                             \
    do {                                               \
        static fake_counter counter = {name, 0, 0, kind, 0}; \
        fake_called(&counter);                         \
    } while (0)
