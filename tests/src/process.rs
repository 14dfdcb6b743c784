//! A helper process that never outlives its test: killed when dropped, and by the kernel when the test dies.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// How often the owner thread looks whether the process has ended.
const POLL: Duration = Duration::from_millis(50);

/// A running child process.
#[derive(Debug)]
pub struct Process {
    /// Its process id.
    pub id: u32,
    stop: Option<Sender<()>>,
    owner: Option<JoinHandle<Result<ExitStatus>>>,
}

impl Process {
    /// Starts the command.
    pub fn start(mut command: Command) -> Result<Self> {
        // SAFETY: prctl is async-signal-safe and PR_SET_PDEATHSIG touches nothing but the new process.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        };
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel();
        // The parent-death signal comes when the thread that started the process ends, and a test's thread ends before
        // the test program does: so each process has an owner thread that lives as long as it.
        let owner = thread::spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let error = anyhow!(error).context(format!("could not start {command:?}"));
                    // The receiver waits in start() below.
                    let _ = started.send(Err(anyhow!("{error:#}")));
                    return Err(error);
                }
            };
            let _ = started.send(Ok(child.id()));
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(POLL) {
                if let Some(status) = child.try_wait().context("could not wait for a process")? {
                    return Ok(status);
                }
            }
            // It may have ended by itself in between.
            let _ = child.kill();
            child.wait().context("could not wait for a process")
        });
        let id = start.recv().context("the thread that starts a process died")??;
        Ok(Self { id, stop: Some(stop), owner: Some(owner) })
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| !owner.is_finished())
    }

    /// Waits for its end, however long that takes.
    pub fn wait(mut self) -> Result<ExitStatus> {
        let owner = self.owner.take().context("the process was waited for before")?;
        let status = owner.join().map_err(|_| anyhow!("the thread that owns a process panicked"))?;
        self.stop = None;
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(owner) = self.owner.take() {
            // A panic there has been printed; there is nothing left to kill.
            let _ = owner.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_dropped_process_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let process = Process::start(command).unwrap();
        let proc = format!("/proc/{}", process.id);
        assert!(process.is_running() && Path::new(&proc).exists());
        drop(process);
        assert!(!Path::new(&proc).exists());
    }

    #[test]
    fn a_missing_program_is_an_error_that_names_it() {
        let error = Process::start(Command::new("/no/such/program")).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/program"));
    }
}
