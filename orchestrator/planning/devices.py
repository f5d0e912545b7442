def sustained_flops_per_second(device, precision):
    return 4e14
