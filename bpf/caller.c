/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/*
 * Who sends a request: a program on the kernel's tracepoint fuse:fuse_request_send, which runs in the context of whoever
 * does. It notes the thread's name, process and cgroup for the mount that `fb_caller_place` names; fusebpf/callers.py
 * loads it, fusebpf/_core/callers.c takes what it noted.
 */
#define FB_THREAD_KEY (1ull << 63) /* the key is a thread, since the request has no number yet: before Linux 6.18 */

/* Where the kernel's structs have what is read, and which mount is meant. */
struct fb_caller_place {
	u32 unique, pid, mount; /* in struct fuse_req */
	u32 connection;		/* in struct fuse_mount */
	u32 device_at;		/* in struct fuse_conn */
	u32 device;		/* the mount's, as the kernel has it */
	u64 namespace_device;	/* the server's pid namespace, which the request's pid is of; */
	u64 namespace_number;	/* 0: the first one */
};

BPF_ARRAY(fb_caller_place, struct fb_caller_place, 1);
BPF_TABLE("lru_hash", u64, struct fb_caller, fb_callers, 1);

struct fb_tracepoint {
	u64 request;
};

FB_ALWAYS_INLINE u64 fb_caller_read(u64 from, u32 offset)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)(from + offset));
	return value;
}

/* The calling thread's number in the server's pid namespace, 0 if it has none there. */
FB_ALWAYS_INLINE u32 fb_caller_thread(const struct fb_caller_place *at)
{
	struct bpf_pidns_info info = {};

	if (!at->namespace_number)
		return (u32)bpf_get_current_pid_tgid();
	bpf_get_ns_current_pid_tgid(at->namespace_device, at->namespace_number, &info, sizeof(info));
	return info.pid;
}

int fb_caller_note(struct fb_tracepoint *ctx)
{
	u32 zero = 0, pid;
	struct fb_caller_place *at = fb_caller_place.lookup(&zero);
	struct fb_caller caller = {};
	u64 request = ctx->request, key, connection;

	if (!at)
		return 0;
	connection = fb_caller_read(fb_caller_read(request, at->mount), at->connection);
	if ((u32)fb_caller_read(connection, at->device_at) != at->device)
		return 0;
	key = fb_caller_read(request, at->unique);
	pid = (u32)fb_caller_read(request, at->pid);
	if (!key)
		key = FB_THREAD_KEY | pid;
	/* Sent by another on the caller's behalf: it is not known who that was, and what was noted before may be old. */
	if (!pid || pid != fb_caller_thread(at)) {
		fb_callers.delete(&key);
		return 0;
	}
	bpf_get_current_comm(&caller.comm, sizeof(caller.comm));
	caller.tgid = bpf_get_current_pid_tgid() >> 32;
	caller.cgroup_id = bpf_get_current_cgroup_id();
	fb_callers.update(&key, &caller);
	return 0;
}
