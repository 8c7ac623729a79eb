/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inode numbers. A backing tree may cross into other file systems, whose numbers are their own; the mount is one device, on
 * which a number stands for one file. Those of the backing root's device stay as they are, the others get the highest bit
 * and a part that is their device's. The list of devices only grows, so it is walked without a lock.
 */
#include "core.h"

#define OTHER_DEVICE (1ULL << 63)
#define DEVICE_BITS 15
#define NUMBER_BITS 48
#define NUMBER_MASK ((1ULL << NUMBER_BITS) - 1)

struct backing_device {
	struct backing_device *next;
	dev_t dev;
	uint64_t part; /* what its numbers have above NUMBER_BITS */
};

/* Bits that depend on all bits (the finalizer of splitmix64). */
static uint64_t scramble(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static struct backing_device *find(struct mount *m, dev_t dev)
{
	struct backing_device *d = atomic_load(&m->inodes.devices);

	while (d && d->dev != dev)
		d = d->next;
	return d;
}

static bool is_taken(struct mount *m, uint64_t part)
{
	struct backing_device *d = atomic_load(&m->inodes.devices);

	while (d && d->part != part)
		d = d->next;
	return d;
}

/* The device's part: made from its number, so that it is the same after the next mount; two devices never share one. */
static uint64_t part_of(struct mount *m, dev_t dev)
{
	uint64_t wanted = scramble(dev);

	struct backing_device *d = find(m, dev);
	if (d)
		return d->part;
	pthread_mutex_lock(&m->inodes.mounts_lock);
	d = find(m, dev);
	if (!d && (d = calloc(1, sizeof(*d)))) {
		d->dev = dev;
		do {
			d->part = OTHER_DEVICE | (wanted++ & ((1u << DEVICE_BITS) - 1)) << NUMBER_BITS;
		} while (is_taken(m, d->part));
		d->next = atomic_load(&m->inodes.devices);
		atomic_store(&m->inodes.devices, d);
	}
	pthread_mutex_unlock(&m->inodes.mounts_lock);
	return d ? d->part : OTHER_DEVICE;
}

/** The number that a file of the backing tree has in the mount. One that is larger than NUMBER_BITS, which few file systems have,
 * is scrambled to that size. */
uint64_t inode_number(struct mount *m, dev_t dev, uint64_t ino)
{
	if (dev == m->inodes.root_dev)
		return ino;
	return part_of(m, dev) | (ino > NUMBER_MASK ? scramble(ino) & NUMBER_MASK : ino);
}

void inode_numbers_deinit(struct mount *m)
{
	for (struct backing_device *d = atomic_load(&m->inodes.devices); d;) {
		struct backing_device *next = d->next;
		free(d);
		d = next;
	}
	atomic_store(&m->inodes.devices, NULL);
}
