/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
/* How the window of a convolution slides; its places are dilation_y and dilation_x pixels apart. */
struct window {
  int in_height, in_width, in_channels, out_height, out_width, out_channels;
  int height, width, stride_y, stride_x, top, left, groups, dilation_y, dilation_x;
};
