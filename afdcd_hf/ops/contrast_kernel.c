/* The contrastive terms on a CPU: distances, softmax and gradient of one patch at a time; no matrix is kept.

   Notation as in contrast_reference.py: a patch has V = N*N*M vectors of K = C/M channels. The index of a vector is
   (k*N + i)*N + j for group k and position (i, j), so the vectors of a group are neighbours. For every patch:

   1. Its vectors are copied to rows of K numbers; the teacher's also to panels of up to WIDEST registers, in which the
      same channel of neighbouring vectors is contiguous.
   2. The distances of ROWS anchors to all candidates are summed in registers.
   3. The softmax of each anchor follows. Candidates whose weight vanishes in the others' rounding are left out.
   4. The gradient of the anchor is summed over the remaining candidates, and overwrites the anchor.

   Compiled for float and, with -DDOUBLE, for double. Vector types are GCC's (and Clang's). NaN and infinities give
   the same as in the reference, so this file must not be compiled with -ffast-math. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef DOUBLE
typedef double real;
typedef uint64_t whole;
enum { MANTISSA = 52, BIAS = 1023, DEGREE = 13 };
#define ROUNDING 0x1.8p52
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define LOWEST -708.0 /* exp of less is subnormal, and taken as 0 */
#define EPSILON 0x1p-52
#define WITHOUT_SIGN INT64_MAX
#else
typedef float real;
typedef uint32_t whole;
enum { MANTISSA = 23, BIAS = 127, DEGREE = 7 };
#define ROUNDING 0x1.8p23f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define LOWEST -87.0f
#define EPSILON 0x1p-23f
#define WITHOUT_SIGN INT32_MAX
#endif

#if defined __AVX512F__
enum { BYTES = 64, ROWS = 4 };
#elif defined __AVX__
enum { BYTES = 32, ROWS = 2 };
#else
enum { BYTES = 16, ROWS = 2 };
#endif
enum { LANES = BYTES / sizeof(real), WIDEST = 4, DEPTH = 128 }; /* DEPTH: maximum of channels in a running sum */
typedef real vector __attribute__((vector_size(BYTES), may_alias));
typedef whole bits __attribute__((vector_size(BYTES), may_alias));
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    real *student, *teacher, *gradient;                                  /* gradient: NULL if not wanted */
    double *losses;                                                      /* of each patch, summed over its anchors */
    int64_t student_strides[4], teacher_strides[4], gradient_strides[4]; /* of (B, C, H, W), in numbers */
    int64_t patch_size, groups, channels, rows, columns;                 /* N, M, K; patches of an image */
    int64_t squared, other_groups;                                       /* booleans: l2; negatives */
    double temperature, scale;                                           /* scale: of the gradient */
} Task;

typedef struct {
    int64_t vectors, channels, columns, stride; /* V, K; V and K rounded up to whole registers */
    real *anchors, *candidates, *panels, *distances, *weights;
    int64_t *kept; /* the candidates that count for an anchor */
} Patch;

INLINE int64_t rounded_up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

INLINE int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }

INLINE vector absolute(vector x) { return (vector)((bits)x & WITHOUT_SIGN); }

INLINE real sum_of(vector x) {
    real sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

/* exp(x) for x <= 0 or NaN: 2^n * exp(r) with |r| <= ln(2)/2, and exp(r) by its series, exact to rounding. */
INLINE vector exponential(vector x) {
    static const real factors[] = {1, 1, 1 / 2., 1 / 6., 1 / 24., 1 / 120., 1 / 720., 1 / 5040., 1 / 40320.,
                                   1 / 362880., 1 / 3628800., 1 / 39916800., 1 / 479001600., 1 / 6227020800.};
    const vector shifted = x * (real)1.4426950408889634 + ROUNDING; /* n in the lowest bits */
    const vector n = shifted - ROUNDING, r = (x - n * LN2_HIGH) - n * LN2_LOW;
    vector series = (vector){} + factors[DEGREE];
    for (int power = DEGREE - 1; power >= 0; power--) series = series * r + factors[power];
    series *= (vector)(((bits)shifted << MANTISSA) + ((whole)BIAS << MANTISSA));
    return (vector)((bits)series & ~(bits)(x < LOWEST));
}

/* Copies a patch of a map to rows of vectors or, with `back`, rows to the map; 16 channels at a time, so that a line of
   the cache, which holds several positions, is read once. */
INLINE void move(const Task *task, real *map, const int64_t *strides, int64_t index, real *rows, int64_t stride,
                 const int back) {
    const int64_t size = task->patch_size, in_image = index % (task->rows * task->columns);
    map += index / (task->rows * task->columns) * strides[0];
    map += in_image / task->columns * size * strides[2] + in_image % task->columns * size * strides[3];
    for (int64_t group = 0; group < task->groups; group++)
        for (int64_t first = 0; first < task->channels; first += 16)
            for (int64_t cell = 0; cell < size * size; cell++) {
                real *row = rows + (group * size * size + cell) * stride + first;
                real *place = map + (group * task->channels + first) * strides[1];
                place += cell / size * strides[2] + cell % size * strides[3];
                for (int64_t channel = 0; channel < least(16, task->channels - first); channel++)
                    if (back)
                        place[channel * strides[1]] = row[channel] * (real)task->scale;
                    else
                        row[channel] = place[channel * strides[1]];
            }
}

/* The number of registers in the panel that begins with the candidate `first`. */
INLINE int64_t panel_width(const Patch *patch, int64_t first) {
    const int64_t left = (patch->columns - first) / LANES;
    return left >= WIDEST ? WIDEST : left >= 2 ? 2 : 1;
}

static void fill_panels(const Patch *patch) {
    for (int64_t first = 0, width; first < patch->columns; first += width) {
        width = panel_width(patch, first) * LANES;
        real *panel = patch->panels + first * patch->channels;
        for (int64_t block = 0; block < patch->channels; block += 16)
            for (int64_t column = 0; column < least(width, patch->vectors - first); column++)
                for (int64_t channel = block; channel < least(block + 16, patch->channels); channel++)
                    panel[channel * width + column] = patch->candidates[(first + column) * patch->stride + channel];
    }
}

/* The distances of ROWS anchors to the candidates of a panel; for the Euclidean norm their squares. */
INLINE void compare(const Patch *patch, const real *anchors, int64_t first, const int width, const int squared) {
    const vector *line = (const vector *)(patch->panels + first * patch->channels);
    for (int64_t start = 0; start < patch->channels; start += DEPTH) {
        vector sums[ROWS][WIDEST] = {};
        for (int64_t channel = start; channel < least(start + DEPTH, patch->channels); channel++, line += width)
            for (int row = 0; row < ROWS; row++)
                for (int part = 0; part < width; part++) {
                    const vector difference = anchors[row * patch->stride + channel] - line[part];
                    if (squared)
                        sums[row][part] += difference * difference;
                    else
                        sums[row][part] += absolute(difference);
                }
        for (int row = 0; row < ROWS; row++)
            for (int part = 0; part < width; part++) {
                vector *target = (vector *)(patch->distances + row * patch->columns + first) + part;
                if (start) sums[row][part] += *target;
                *target = sums[row][part];
            }
    }
}

INLINE void compare_all(const Patch *patch, const real *anchors, const int squared) {
    for (int64_t first = 0, width; first < patch->columns; first += width * LANES) {
        width = panel_width(patch, first); /* a constant for the compiler in each of the calls */
        if (width == WIDEST) compare(patch, anchors, first, WIDEST, squared);
        if (width == 2) compare(patch, anchors, first, 2, squared);
        if (width == 1) compare(patch, anchors, first, 1, squared);
    }
}

/* An anchor's loss; fills the weights with exp(-(distance - nearest) / temperature), and `total` with their sum. The
   distances of excluded candidates become infinite. */
static double weigh(const Patch *patch, const Task *task, int64_t anchor, real *distances, real *total) {
    const int64_t group = task->patch_size * task->patch_size, first = anchor / group * group;
    const real own = distances[anchor], inverse = 1 / task->temperature;
    if (task->other_groups)
        for (int64_t other = first; other < first + group; other++) distances[other] = INFINITY;
    distances[anchor] = own;
    for (int64_t padding = patch->vectors; padding < patch->columns; padding++) distances[padding] = INFINITY;
    real nearest = INFINITY;
    vector smallest = (vector){} + nearest, sum = {}, *weights = (vector *)patch->weights;
    const vector *lengths = (const vector *)distances, *end = (const vector *)(distances + patch->columns);
    for (const vector *length = lengths; length < end; length++) {
        const bits smaller = (bits)(*length < smallest); /* never for NaN */
        smallest = (vector)((smaller & (bits)*length) | (~smaller & (bits)smallest));
    }
    for (int lane = 0; lane < LANES; lane++) nearest = smallest[lane] < nearest ? smallest[lane] : nearest;
    for (; lengths < end; lengths++, weights++) sum += *weights = exponential((nearest - *lengths) * inverse);
    *total = sum_of(sum);
    return log(*total) + (own - nearest) / task->temperature;
}

/* Makes the weights those of the gradient, 1[positive] - softmax, and for the Euclidean norm divides them by the
   distance; moves those that count to the front and lists their candidates. With `all`, all count, undivided. */
static int64_t keep(const Patch *patch, int64_t anchor, const real *distances, real total, int squared, int all) {
    const real negligible = all ? -1 : EPSILON / (4 * patch->vectors), inverse = 1 / total;
    int64_t kept = 0;
    for (int64_t first = 0; first < patch->columns; first += LANES) {
        const bits some = ~(bits)(*(vector *)(patch->weights + first) * inverse <= negligible); /* NaN counts */
        int any = anchor / LANES == first / LANES;
        for (int lane = 0; lane < LANES; lane++) any |= some[lane] != 0;
        for (int64_t other = first; any && other < least(first + LANES, patch->vectors); other++) {
            real weight = (other == anchor) - patch->weights[other] * inverse;
            const int counts = !(fabs(weight) <= negligible);
            if (squared && !all) weight /= distances[other] > 0 ? distances[other] : (real)INFINITY;
            patch->weights[kept] = weight;
            patch->kept[kept] = other;
            kept += counts;
        }
    }
    return kept;
}

/* `parts` registers of an anchor's gradient. */
INLINE void pull(const Patch *patch, real *anchor, int64_t first, int64_t kept, const int parts, const int squared) {
    vector *place = (vector *)(anchor + first), own[WIDEST], sums[WIDEST] = {};
    for (int part = 0; part < parts; part++) own[part] = place[part];
    for (int64_t index = 0; index < kept; index++) {
        const vector *other = (const vector *)(patch->candidates + patch->kept[index] * patch->stride + first);
        const vector weight = (vector){} + patch->weights[index];
        for (int part = 0; part < parts; part++)
            if (squared)
                sums[part] += (own[part] - other[part]) * weight;
            else
                sums[part] += (vector)((bits)(own[part] > other[part]) & (bits)weight) -
                              (vector)((bits)(own[part] < other[part]) & (bits)weight);
    }
    for (int part = 0; part < parts; part++) place[part] = sums[part];
}

INLINE void pull_all(const Patch *patch, real *anchor, int64_t kept, const int squared) {
    int64_t first = 0;
    for (; first + WIDEST * LANES <= patch->stride; first += WIDEST * LANES)
        pull(patch, anchor, first, kept, WIDEST, squared);
    for (; first < patch->stride; first += LANES) pull(patch, anchor, first, kept, 1, squared);
}

/* The same from all candidates, if a distance is not finite; here NaN has the sign NaN. */
static void pull_carefully(const Patch *patch, real *anchor, int squared) {
    for (int64_t other = 0; squared && other < patch->vectors; other++) {
        real square = 0;
        for (int64_t channel = 0; channel < patch->channels; channel++) {
            const real difference = anchor[channel] - patch->candidates[other * patch->stride + channel];
            square += difference * difference;
        }
        patch->weights[other] /= square == 0 ? (real)INFINITY : (real)sqrt(square);
    }
    for (int64_t channel = 0; channel < patch->channels; channel++) {
        real sum = 0;
        for (int64_t other = 0; other < patch->vectors; other++) {
            const real difference = anchor[channel] - patch->candidates[other * patch->stride + channel];
            const real sign = difference > 0 ? 1 : difference < 0 ? -1 : difference; /* 0 or NaN */
            sum += patch->weights[other] * (squared ? difference : sign);
        }
        anchor[channel] = sum;
    }
}

INLINE double contrast_patch(const Patch *patch, const Task *task, const int squared) {
    double loss = 0;
    for (int64_t anchor = 0; anchor < patch->vectors; anchor++) {
        real *own = patch->anchors + anchor * patch->stride, total;
        real *distances = patch->distances + anchor % ROWS * patch->columns;
        if (anchor % ROWS == 0) compare_all(patch, own, squared);
        if (squared)
            for (int64_t column = 0; column < patch->columns; column++) distances[column] = sqrt(distances[column]);
        vector sum = {};
        for (int64_t column = 0; column < patch->columns; column += LANES) sum += *(vector *)(distances + column);
        const int careful = !isfinite(sum_of(sum));
        loss += weigh(patch, task, anchor, distances, &total);
        if (!task->gradient) continue;
        const int64_t kept = keep(patch, anchor, distances, total, squared, careful);
        if (careful)
            pull_carefully(patch, own, squared);
        else
            pull_all(patch, own, kept, squared);
    }
    return loss;
}

/* Computes the patches from `first` up to, not including, `last`; returns 1 if out of memory, else 0. */
int afdcd_contrast(const Task *task, int64_t first, int64_t last) {
    Patch patch = {.vectors = task->patch_size * task->patch_size * task->groups, .channels = task->channels};
    patch.columns = rounded_up(patch.vectors, LANES);
    patch.stride = rounded_up(patch.channels, LANES);
    const int64_t numbers = rounded_up(patch.vectors, ROWS) * patch.stride;
    struct {
        void **place;
        int64_t bytes;
    } buffers[] = {
        {(void **)&patch.anchors, numbers * sizeof(real)},
        {(void **)&patch.candidates, numbers * sizeof(real)},
        {(void **)&patch.panels, patch.columns * patch.channels * sizeof(real)},
        {(void **)&patch.distances, ROWS * patch.columns * sizeof(real)},
        {(void **)&patch.weights, patch.columns * sizeof(real)},
        {(void **)&patch.kept, patch.columns * sizeof(int64_t)},
    };
    int failed = 0;
    for (int part = 0; part < 6; part++) {
        const int64_t bytes = rounded_up(buffers[part].bytes, BYTES);
        *buffers[part].place = aligned_alloc(BYTES, bytes);
        if (*buffers[part].place)
            memset(*buffers[part].place, 0, bytes); /* the padding of rows and panels stays 0 */
        else
            failed = 1;
    }
    for (int64_t index = first; index < last && !failed; index++) {
        move(task, task->student, task->student_strides, index, patch.anchors, patch.stride, 0);
        move(task, task->teacher, task->teacher_strides, index, patch.candidates, patch.stride, 0);
        fill_panels(&patch);
        task->losses[index] = task->squared ? contrast_patch(&patch, task, 1) : contrast_patch(&patch, task, 0);
        if (task->gradient)
            move(task, task->gradient, task->gradient_strides, index, patch.anchors, patch.stride, 1);
    }
    for (int part = 0; part < 6; part++) free(*buffers[part].place);
    return failed;
}
