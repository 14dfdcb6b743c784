//! When a program asks KVM to run a guest for the first time.
//!
//! A tracer would stop the program at every system call and measure itself. A seccomp filter with a listener
//! (seccomp_unotify(2)) lets the kernel decide: all calls pass, and the first KVM_RUN sleeps and is announced to us.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::guest::{Guest, Monitor};

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u32 = 0xae80;
/// Where the program carries the listener, so that we can fetch it: a number that nothing else takes so early.
const LISTENER: RawFd = 900;
const PATIENCE: Duration = Duration::from_secs(60);

/// From the start of the monitor to its first KVM_RUN. The guest never runs.
pub fn measure(bench: &Bench, monitor: Monitor) -> Result<Duration> {
    let mut command = monitor.command(bench, "then=idle");
    listen(&mut command);
    let guest = Guest::start(monitor, command)?;
    let listener = fetch(guest.process.id, LISTENER).context("could not take over the system call listener")?;
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd that lives as long as the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as libc::c_int) };
    let now = Instant::now();
    ensure!(ready == 1 && poll.revents & libc::POLLIN != 0, "{} never ran its guest", monitor.name());
    Ok(now - guest.begun)
}

/// Has the program that the command starts announce its first KVM_RUN.
fn listen(command: &mut Command) {
    // Offsets of `struct seccomp_data`: the call's number, the architecture, the low half of the second argument.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const REQUEST: u32 = 24;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    let load = |k| libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k };
    let unless = |k, jf| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf, k };
    let answer = |k| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
    let filter = [
        load(ARCHITECTURE),
        unless(AUDIT_ARCH_X86_64, 5),
        load(NUMBER),
        unless(libc::SYS_ioctl as u32, 3),
        load(REQUEST),
        unless(KVM_RUN, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        let check = |result: i64| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
        // SAFETY: system calls only, with a filter that outlives them; dup2 leaves the copy open in the new program.
        unsafe {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
            let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            let listener = check(libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program))?;
            check(libc::dup2(listener as RawFd, LISTENER).into())?;
        }
        Ok(())
    };
    // SAFETY: it calls nothing that is not async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(install) };
}

/// A copy of another process's file descriptor.
fn fetch(process: u32, descriptor: RawFd) -> io::Result<OwnedFd> {
    let own = |result: i64| {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
    };
    // SAFETY: two system calls on numbers.
    unsafe {
        let process = own(libc::syscall(libc::SYS_pidfd_open, process, 0))?;
        own(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0))
    }
}
