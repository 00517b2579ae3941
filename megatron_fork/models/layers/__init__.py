"""The layers of torch and Triton that run where Transformer Engine is not used.

What one layer keeps of a token for backward, in numbers of the model's dtype, with n the width, q and k the widths of all query
and of all key heads, f the width of the MLP, all divided over tensor ranks:

                                            kept by torch's modules       kept here        computed again in backward
    input of the layer, for its norm        n                             n
    its norm's result                       n                                              1 read, 1 write of n
    projection of queries, keys, values     q + 2 k                       q + 2 k
    queries, copied for their norm          q
    queries and keys, rotated               q + k                                          1 read, 1 write of q + k
    cosines and sines                       4 d                           d, once a row
    attention's result                      q                             q
    input of the MLP's norm                 n                             n
    its norm's result                       n                                              1 read, 1 write of n
    gate and up projection                  2 f                           2 f
    silu of the gate, a copy of up          2 f
    their product                           f                                              2 reads, 1 write of f

                  bytes in bf16 of Qwen3-0.6B (n 1024, q 2048, k 1024, f 3072)   61,440   28,672
                                of Qwen3-8B   (n 4096, q 4096, k 1024, f 12288) 189,440   86,016

and 4 bytes for each row of a norm, each query and key head under a norm, and each head of attention. With
`compute.recompute=selective` the gate and up projection is multiplied again as well, 4 n f operations a token: 16,384 bytes of
0.6B and 36,864 of 8B stay. With `full`, whole layers are computed again, one at a time, and nothing else is. Nor is anything
with `none` where these functions run in torch, as on a CPU, where an activation costs as much as a product of a small model.

Predicted for an H100 (3.35 TB/s), not measured: computing again moves 39 kB a token and layer of 0.6B and 127 kB of 8B, 12 and
38 ns, where the products of forward and backward take 190 and 2,340 ns at half of the dense peak: 6 % and 1.6 % of them.
"""
