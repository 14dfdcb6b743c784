//! Runs a program and interferes with one of its system calls, exactly (`ptrace(2)`): those that change what is stored below
//! one folder are counted, and before the one that was asked for the program is killed, or the call fails.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libc::{c_long, c_ulong, pid_t, user_regs_struct};

use super::filter::Filter;

/// Longer than any operation here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// The longest path that is read from the program.
const MAX_PATH: usize = 4096;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The program is killed before it.
    Kill,
    /// Of a write, only a part is done; then the program is killed.
    Tear,
    /// It fails with this error (`errno(3)`).
    Fail(i32),
    /// The file system is full from here on: whatever needs space fails.
    Full,
}

/// What is done to a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Which call, from 0, and what happens to it.
    pub at: Option<(usize, Act)>,
    /// The program may use io_uring.
    pub uring: bool,
    /// Calls count from the first on that is about a path with one of these in it; none: from the beginning.
    pub from: &'static [&'static str],
}

/// A call that stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name, like `rename`.
    pub name: &'static str,
    /// The file, or the first of two, relative to the folder.
    pub path: PathBuf,
    /// It needs space, and fails where there is none.
    pub grows: bool,
    /// Bytes that a write is about.
    bytes: usize,
}

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// What it stored, or began to.
    pub calls: Vec<Call>,
    /// What it exited with; `None`: it was killed.
    pub code: Option<i32>,
    /// What it said.
    pub output: String,
    /// What it complained of.
    pub complaint: String,
    /// The call that was asked for was made.
    pub reached: bool,
}

/// Runs `command` under `plan`. Calls count that change what is below `folder`, an absolute path without links. `scratch` is for
/// what the program says.
///
/// # Errors
/// It can't be started or followed, or it hangs.
pub fn run(mut command: Command, folder: &Path, scratch: &Path, plan: Plan) -> Result<Outcome> {
    let filter = Filter::new(plan.uring);
    let [out, err] = ["out", "err"].map(|name| scratch.join(name));
    let file = |path: &Path| std::fs::File::create(path).with_context(|| format!("could not make {}", path.display()));
    command.stdin(Stdio::null()).stdout(file(&out)?).stderr(file(&err)?);
    let enter = move || {
        // SAFETY: asks to be traced by whoever started this process; touches no memory.
        if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        filter.enter()
    };
    // SAFETY: the closure allocates nothing and makes three async-signal-safe calls.
    unsafe { command.pre_exec(enter) };
    let child = command.spawn().with_context(|| format!("could not start {command:?}"))?;
    let mut tracer = Tracer { child, folder, plan, calls: Vec::new(), reached: false, code: None, ended: false };
    tracer.follow()?;
    let (calls, reached, code) = (std::mem::take(&mut tracer.calls), tracer.reached, tracer.code);
    let read = |path: &Path| Ok::<_, io::Error>(String::from_utf8_lossy(&std::fs::read(path)?).into_owned());
    Ok(Outcome { calls, code, output: read(&out)?, complaint: read(&err)?, reached })
}

struct Tracer<'a> {
    child: Child,
    folder: &'a Path,
    plan: Plan,
    calls: Vec<Call>,
    reached: bool,
    code: Option<i32>,
    /// All of its threads have ended, and were waited for.
    ended: bool,
}

fn trace(request: u32, thread: pid_t, data: c_ulong) -> io::Result<()> {
    // SAFETY: the requests used here with numbers write no memory of this process.
    let result = unsafe { libc::ptrace(request, thread, 0, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Tracer<'_> {
    fn main(&self) -> pid_t {
        self.child.id() as pid_t
    }

    /// Takes the program to its end.
    fn follow(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut ready = false;
        loop {
            let mut status = 0;
            // Threads of this one's children only: other tests of this process have children too.
            let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
            // SAFETY: writes the status alone.
            let thread = unsafe { libc::waitpid(-1, &raw mut status, flags) };
            if thread == 0 {
                if Instant::now() >= until {
                    self.kill();
                    bail!("the program hangs after {:?}", self.calls.last());
                }
                std::thread::sleep(Duration::from_micros(50));
                continue;
            }
            if thread < 0 {
                match io::Error::last_os_error() {
                    error if error.raw_os_error() == Some(libc::ECHILD) => {
                        self.ended = true;
                        return Ok(());
                    }
                    error => return Err(error).context("could not follow the program"),
                }
            }
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                if thread == self.main() {
                    self.code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
                }
                continue;
            }
            let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
            if !ready {
                ensure!(thread == self.main() && signal == libc::SIGTRAP, "it stops with signal {signal} first");
                let options = libc::PTRACE_O_TRACESECCOMP | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
                trace(libc::PTRACE_SETOPTIONS, thread, options as c_ulong).context("could not follow the program")?;
                ready = true;
            } else if event == libc::PTRACE_EVENT_SECCOMP {
                self.call(thread)?;
            }
            // A thread that begins stops with this one, which is not the program's.
            let passed_on = if event != 0 || matches!(signal, libc::SIGTRAP | libc::SIGSTOP) { 0 } else { signal };
            // One that was killed meanwhile is gone.
            let _ = trace(libc::PTRACE_CONT, thread, passed_on as c_ulong);
        }
    }

    fn kill(&self) {
        // SAFETY: touches no memory; the process was not waited for to its end, so the number is still its own.
        unsafe { libc::kill(self.main(), libc::SIGKILL) };
    }

    /// A thread is about to make a call of the filter's.
    fn call(&mut self, thread: pid_t) -> Result<()> {
        // SAFETY: registers are plain data.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        let place: *mut user_regs_struct = &raw mut registers;
        // SAFETY: the kernel fills the structure, which outlives the call.
        if unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, 0, place) } < 0 {
            // Killed meanwhile.
            return Ok(());
        }
        // What is logged tells of time.
        let call =
            self.look(thread, &registers).filter(|call| !call.path.components().any(|c| c.as_os_str() == "logs"));
        let Some(call) = call else { return Ok(()) };
        let path = call.path.to_string_lossy();
        if self.calls.is_empty() && !self.plan.from.is_empty() && !self.plan.from.iter().any(|part| path.contains(part))
        {
            return Ok(());
        }
        let number = self.calls.len();
        let act = match self.plan.at {
            Some((at, Act::Full)) if number >= at && call.grows => Some(Act::Full),
            Some((at, act)) if number == at && act != Act::Full => Some(act),
            _ => None,
        };
        self.reached |= act.is_some();
        let bytes = call.bytes;
        self.calls.push(call);
        let failure = match act {
            None => return Ok(()),
            Some(Act::Fail(errno)) => errno,
            Some(Act::Full) => libc::ENOSPC,
            Some(Act::Kill) => {
                self.kill();
                return Ok(());
            }
            Some(Act::Tear) => {
                self.tear(thread, registers, bytes)?;
                return Ok(());
            }
        };
        // No call, and a result as if there had been one.
        registers.orig_rax = u64::MAX;
        registers.rax = -i64::from(failure) as u64;
        set(thread, &registers).context("could not have a call fail")
    }

    /// Has a write do only half, and kills the program.
    fn tear(&self, thread: pid_t, mut registers: user_regs_struct, bytes: usize) -> Result<()> {
        match registers.orig_rax as c_long {
            libc::SYS_write | libc::SYS_pwrite64 => registers.rdx = bytes as u64 / 2,
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
                // The first run of several, and half of the only one.
                if registers.rdx == 1 {
                    let half = (bytes as u64 / 2).to_ne_bytes();
                    poke(thread, registers.rsi + 8, &half).context("could not shorten a write")?;
                }
                registers.rdx = 1;
            }
            _ => {
                self.kill();
                return Ok(());
            }
        }
        set(thread, &registers).context("could not shorten a write")?;
        // To the call's end, which is the next stop.
        trace(libc::PTRACE_SYSCALL, thread, 0).context("could not shorten a write")?;
        let mut status = 0;
        // SAFETY: writes the status alone.
        unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        if libc::WIFSTOPPED(status) {
            // The stop before the call comes first.
            trace(libc::PTRACE_SYSCALL, thread, 0).context("could not shorten a write")?;
            // SAFETY: as above.
            unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        }
        self.kill();
        Ok(())
    }

    /// What a call is about, if it stores something below the folder.
    fn look(&self, thread: pid_t, registers: &user_regs_struct) -> Option<Call> {
        let number = registers.orig_rax as c_long;
        let (first, second, third) = (registers.rdi, registers.rsi, registers.rdx);
        let file = |fd: u64| std::fs::read_link(format!("/proc/{thread}/fd/{}", fd as i32)).ok();
        let path = |folder: u64, place: u64| {
            let name = peek_text(thread, place)?;
            let name = PathBuf::from(OsString::from_vec(name));
            let below = if folder as i32 == libc::AT_FDCWD {
                std::fs::read_link(format!("/proc/{thread}/cwd")).ok()?
            } else if name.is_absolute() {
                PathBuf::new()
            } else {
                file(folder)?
            };
            Some(below.join(name))
        };
        let here = libc::AT_FDCWD as u64;
        let opens = |flags: u64| flags as i32 & (libc::O_CREAT | libc::O_TRUNC) != 0;
        let runs = |count: u64| {
            let mut all = vec![0; (count.min(1024) * 16) as usize];
            peek(thread, second, &mut all).ok()?;
            let lengths = all.chunks_exact(16).filter_map(|run| run.last_chunk::<8>().copied());
            Some(lengths.map(u64::from_ne_bytes).sum::<u64>() as usize)
        };
        let (name, path, grows, bytes) = match number {
            libc::SYS_write => ("write", file(first)?, true, third as usize),
            libc::SYS_pwrite64 => ("pwrite", file(first)?, true, third as usize),
            libc::SYS_writev => ("writev", file(first)?, true, runs(third)?),
            libc::SYS_pwritev | libc::SYS_pwritev2 => ("pwritev", file(first)?, true, runs(third)?),
            libc::SYS_sendfile => ("sendfile", file(first)?, true, 0),
            libc::SYS_splice => ("splice", file(third)?, true, 0),
            libc::SYS_copy_file_range => ("copy_file_range", file(third)?, true, 0),
            libc::SYS_truncate => ("truncate", path(here, first)?, false, 0),
            libc::SYS_ftruncate => ("ftruncate", file(first)?, false, 0),
            libc::SYS_fallocate => ("fallocate", file(first)?, second as i32 & libc::FALLOC_FL_PUNCH_HOLE == 0, 0),
            libc::SYS_fsync => ("fsync", file(first)?, false, 0),
            libc::SYS_fdatasync => ("fdatasync", file(first)?, false, 0),
            libc::SYS_sync_file_range => ("sync_file_range", file(first)?, false, 0),
            libc::SYS_open if opens(second) => ("open", path(here, first)?, true, 0),
            libc::SYS_creat => ("creat", path(here, first)?, true, 0),
            libc::SYS_openat if opens(third) => ("openat", path(first, second)?, true, 0),
            libc::SYS_rename => ("rename", path(here, first)?, true, 0),
            libc::SYS_renameat | libc::SYS_renameat2 => ("renameat", path(first, second)?, true, 0),
            libc::SYS_link => ("link", path(here, second)?, true, 0),
            libc::SYS_linkat => ("linkat", path(third, registers.r10)?, true, 0),
            libc::SYS_symlink => ("symlink", path(here, second)?, true, 0),
            libc::SYS_symlinkat => ("symlinkat", path(second, third)?, true, 0),
            libc::SYS_unlink => ("unlink", path(here, first)?, false, 0),
            libc::SYS_unlinkat => ("unlinkat", path(first, second)?, false, 0),
            libc::SYS_rmdir => ("rmdir", path(here, first)?, false, 0),
            libc::SYS_mkdir => ("mkdir", path(here, first)?, true, 0),
            libc::SYS_mkdirat => ("mkdirat", path(first, second)?, true, 0),
            // Several calls on files of the program's choice: its own are below the folder.
            libc::SYS_io_uring_enter if second > 0 => ("io_uring_enter", self.folder.to_path_buf(), true, 0),
            _ => return None,
        };
        let path = path.strip_prefix(self.folder).ok()?.to_path_buf();
        Some(Call { name, path, grows, bytes })
    }
}

impl Drop for Tracer<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
        }
    }
}

fn set(thread: pid_t, registers: &user_regs_struct) -> io::Result<()> {
    let place: *const user_regs_struct = registers;
    // SAFETY: the kernel only reads the structure, which outlives the call.
    let result = unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, 0, place) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads a stopped program's memory.
fn peek(thread: pid_t, place: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let there = libc::iovec { iov_base: place as *mut _, iov_len: bytes.len() };
    // SAFETY: the kernel writes to the slice alone, and checks the other process's addresses.
    let count = unsafe { libc::process_vm_readv(thread, &raw const here, 1, &raw const there, 1, 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn poke(thread: pid_t, place: u64, bytes: &[u8]) -> io::Result<()> {
    let here = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let there = libc::iovec { iov_base: place as *mut _, iov_len: bytes.len() };
    // SAFETY: the kernel only reads the slice, and checks the other process's addresses.
    let count = unsafe { libc::process_vm_writev(thread, &raw const here, 1, &raw const there, 1, 0) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A text that ends in NUL.
fn peek_text(thread: pid_t, place: u64) -> Option<Vec<u8>> {
    let (mut text, mut at) = (Vec::new(), place);
    while text.len() < MAX_PATH {
        // To the end of a page: what follows may not be there.
        let mut part = vec![0; (0x1000 - at % 0x1000) as usize];
        let count = peek(thread, at, &mut part).ok()?;
        part.truncate(count);
        if let Some(end) = part.iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&part[..end]);
            return Some(text);
        }
        at += count as u64;
        text.append(&mut part);
    }
    None
}
