/* Classifies digits of an .npy file, uint8 [N, 28, 28], with a compiled model:

     hashinfer build models/mnist-dyadic-64x.hnet --name digits -o digits.o
     cc -I. bench/native/classify.c digits.o -lm -o classify
     ./classify models/mnist-test-1k.npy 7 2 1                      # prints a class for each row named */
#include <stdio.h>
#include <stdlib.h>

#include "digits.h"

static _Alignas(DIGITS_SCRATCH_ALIGNMENT) unsigned char scratch[DIGITS_SCRATCH];

int main(int count, char **words)
{
    unsigned char header[10], image[DIGITS_INPUT_0_SIZE];
    float logits[DIGITS_OUTPUT_0_SIZE];
    FILE *file = count > 2 ? fopen(words[1], "rb") : NULL;

    if (!file || fread(header, 1, sizeof header, file) != sizeof header) {
        fprintf(stderr, "usage: classify DIGITS.npy ROW...\n");
        return 2;
    }
    for (int k = 2; k < count; k++) {
        long start = 10 + header[8] + 256 * header[9], row = atol(words[k]);
        int best = 0;

        if (row < 0 || fseek(file, start + row * (long)sizeof image, SEEK_SET) ||
            fread(image, sizeof image, 1, file) != 1) {
            fprintf(stderr, "there is no row %s\n", words[k]);
            return 2;
        }
        if (digits_predict(image, logits, 1, scratch) != DIGITS_OK)
            return 1;
        for (int c = 1; c < DIGITS_OUTPUT_0_SIZE; c++)
            if (logits[c] > logits[best])
                best = c;
        printf("row %ld: %d\n", row, best);
    }
    return 0;
}
