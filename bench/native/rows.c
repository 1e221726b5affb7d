/* Runs a compiled model row by row: inputs from in.bin, outputs to out.bin. ports.h says how many bytes a row has. */
#include <stdio.h>

#include "model.h"
#include "ports.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const size_t input_bytes[] = INPUT_BYTES, output_bytes[] = OUTPUT_BYTES;
static _Alignas(MODEL_SCRATCH_ALIGNMENT) unsigned char scratch[MODEL_SCRATCH + 1], in[IN_ALL + 1], out[OUT_ALL + 1];

int main(void)
{
    const void *inputs[COUNT(input_bytes)];
    void *outputs[COUNT(output_bytes)];
    FILE *source = fopen("in.bin", "rb"), *target = fopen("out.bin", "wb");
    size_t at = 0;

    if (!source || !target || model_scratch_size(1) > sizeof scratch)
        return 10;
    for (size_t k = 0; k < COUNT(input_bytes); at += input_bytes[k++])
        inputs[k] = in + at;
    at = 0;
    for (size_t k = 0; k < COUNT(output_bytes); at += output_bytes[k++])
        outputs[k] = out + at;
    while (fread(in, 1, IN_ALL, source) == IN_ALL) {
        int code = model_run(inputs, outputs, 1, scratch);
        if (code)
            return 20 + code;
        if (fwrite(out, 1, OUT_ALL, target) != OUT_ALL)
            return 11;
    }
    return fclose(target) ? 12 : 0;
}
