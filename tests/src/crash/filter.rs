//! Which system calls change what is stored, and the kernel's filter (`seccomp(2)`) that stops a program before each.

use std::io;

use libc::{SYS_openat, c_long, sock_filter, sock_fprog};

/// Calls that may change a file or a folder, and those that make changes durable.
const STORING: &[c_long] = &[
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_copy_file_range,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_open,
    libc::SYS_creat,
    SYS_openat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_io_uring_enter,
];

// The instructions of the filter's little machine (`linux/bpf_common.h`), and where the call's number is
// (`linux/seccomp.h`).
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const NUMBER: u32 = 0;

/// A program for the kernel.
pub(super) struct Filter(Vec<sock_filter>);

impl Filter {
    /// Stops before every call that stores; without `uring` there is no io_uring, so that each call is one of its own.
    pub fn new(uring: bool) -> Filter {
        let word = |code, k| sock_filter { code, jt: 0, jf: 0, k };
        let mut program = vec![word(LOAD, NUMBER)];
        let mut when = |number: c_long, then: u32| {
            program.push(sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: number as u32 });
            program.push(word(RETURN, then));
        };
        STORING.iter().for_each(|&number| when(number, libc::SECCOMP_RET_TRACE));
        if !uring {
            when(libc::SYS_io_uring_setup, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        }
        program.push(word(RETURN, libc::SECCOMP_RET_ALLOW));
        Filter(program)
    }

    /// Puts the calling thread, and what it starts, under the filter. Allocates nothing: it may be called after a fork.
    pub fn enter(&self) -> io::Result<()> {
        let program = sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: the program outlives the call, which only reads it; both calls change this process's own rights alone.
        let refused = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) < 0
        };
        if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
