"""The output-space discriminator of AdaptSegNet (section 3.2 of its paper), also used by CLAN."""

from torch import nn


class OutputDiscriminator(nn.Module):
    """Five 4x4 convolutions of stride 2: class probabilities (N,C,H,W) to domain logits (N,1,H/32,W/32).

    Each side is halved five times and rounded down, so inputs must be at least 32 pixels on each side.
    """

    def __init__(self, num_classes=19, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(num_classes, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.conv4 = nn.Conv2d(4 * width, 8 * width, 4, stride=2, padding=1)
        self.classifier = nn.Conv2d(8 * width, 1, 4, stride=2, padding=1)
        self.leaky_relu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = self.leaky_relu(convolution(x))
        return self.classifier(x)
