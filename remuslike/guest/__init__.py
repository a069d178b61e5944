"""Stock QEMU as a guest that can be captured, and as a standby that can take over."""
