/* The header must compile alone, as C. */
#include "pyds4.h"

_Static_assert(sizeof(((pyds4_step_item *)0)->message) == 256, "room for one line");
