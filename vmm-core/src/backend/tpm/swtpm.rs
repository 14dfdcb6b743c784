//! swtpm's protocol (its man pages swtpm(8) and swtpm_ioctls(3)): numbers in network byte order on a control channel,
//! TPM commands and responses as they are on a data channel. Both are UNIX stream sockets.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{Blob, Interrupt, Limits, MAX_MESSAGE, TpmBackend, TpmError, TpmState};
use crate::base::Bytes;

/// Requests of the control channel.
mod request {
    pub const GET_CAPABILITY: u32 = 0x01;
    pub const INIT: u32 = 0x02;
    pub const SHUTDOWN: u32 = 0x03;
    pub const SET_LOCALITY: u32 = 0x05;
    pub const CANCEL_TPM_CMD: u32 = 0x09;
    pub const GET_STATEBLOB: u32 = 0x0c;
    pub const SET_STATEBLOB: u32 = 0x0d;
    pub const STOP: u32 = 0x0e;
    pub const SET_DATAFD: u32 = 0x10;
    pub const SET_BUFFERSIZE: u32 = 0x11;
}

/// What swtpm must be able to do: the bits of INIT, SHUTDOWN, SET_LOCALITY, CANCEL, GET_STATEBLOB, SET_STATEBLOB, STOP,
/// SET_DATAFD and SET_BUFFERSIZE.
const NEEDED: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13;
/// INIT's flag for a start that is no resume: volatile state on disk is of an earlier life.
const DELETE_VOLATILE: u32 = 1;
/// Kinds of state blobs.
const PERMANENT: u32 = 1;
const VOLATILE: u32 = 2;
const SAVED: u32 = 3;
/// The result for a state blob that there is none of (TPM_RETRY).
const NONE_THERE: u32 = 0x800;
/// The most that is taken for one state blob. Permanent state is a few KiB and 64 KiB of NV memory at most.
const MAX_BLOB: usize = 4 << 20;
/// A TPM's header: tag, size, code.
const HEADER: usize = 10;

/// A swtpm process at the other end of a control channel. It is told to shut down when this is dropped.
pub struct Swtpm {
    control: UnixStream,
    data: UnixStream,
    limits: Limits,
    interrupt: Arc<Interrupt>,
    /// Which locality commands come from, where it was said.
    locality: Option<u8>,
    /// It failed in a way that leaves the channels without sense.
    broken: bool,
}

impl Swtpm {
    /// Takes over a swtpm that was started with `--tpm2 --ctrl type=unixio,clientfd=N`, N being the other end of
    /// `control`. It has no power yet.
    ///
    /// # Errors
    /// It ended, does not answer, or is too old.
    pub fn connect(control: UnixStream, limits: Limits) -> Result<Swtpm, TpmError> {
        let (data, theirs) = UnixStream::pair().map_err(TpmError::Host)?;
        for socket in [&control, &data] {
            socket.set_nonblocking(true).map_err(TpmError::Host)?;
        }
        let interrupt = Arc::new(Interrupt::new().map_err(TpmError::Host)?);
        let mut tpm = Swtpm { control, data, limits, interrupt, locality: None, broken: false };
        let mut found = [0; 8];
        tpm.control("say what it can do", request::GET_CAPABILITY, &[], &mut found)?;
        let found = u64::from_be_bytes(found);
        if found & NEEDED != NEEDED {
            return Err(TpmError::TooOld { found, needed: NEEDED });
        }
        // The request is four bytes into an empty socket: it goes out whole.
        let message = request::SET_DATAFD.to_be_bytes();
        tpm.control.send_with_fd(&message[..], theirs.as_raw_fd()).map_err(|e| TpmError::Host(e.into()))?;
        tpm.result("take a data channel")?;
        Ok(tpm)
    }

    fn wait(&self, what: &'static str, limit: Duration) -> Wait {
        let interrupt = self.interrupt.clone();
        Wait { what, deadline: Instant::now() + limit, limit, interrupt, hears_cancel: false }
    }

    /// One request and its answer of a fixed length.
    fn control(&mut self, what: &'static str, request: u32, payload: &[u8], answer: &mut [u8]) -> Result<(), TpmError> {
        let message = [&request.to_be_bytes(), payload].concat();
        let wait = self.wait(what, self.limits.control);
        wait.write(&self.control, &message)?;
        wait.read(&self.control, answer).map(drop)
    }

    /// Reads an answer that is a result only.
    fn result(&mut self, what: &'static str) -> Result<(), TpmError> {
        let wait = self.wait(what, self.limits.control);
        let mut code = [0; 4];
        wait.read(&self.control, &mut code)?;
        check(what, code)
    }

    /// One request whose answer is a result only.
    fn ask(&mut self, what: &'static str, request: u32, payload: &[u8]) -> Result<(), TpmError> {
        let mut code = [0; 4];
        self.control(what, request, payload, &mut code)?;
        check(what, code)
    }

    /// One request that is answered by four numbers, a result first; it may be [`NONE_THERE`].
    fn numbers(&mut self, what: &'static str, request: u32, payload: &[u8]) -> Result<[u32; 4], TpmError> {
        let mut answer = [0; 16];
        self.control(what, request, payload, &mut answer[..4])?;
        let [code, ..] = numbers(answer);
        if code != 0 && code != NONE_THERE {
            // A refusal is four bytes long or sixteen. What there is came with the first.
            let _ = (&self.control).read(&mut [0; 12]);
            return Err(TpmError::Refused { what, code });
        }
        self.wait(what, self.limits.control).read(&self.control, &mut answer[4..])?;
        Ok(numbers(answer))
    }

    /// Does something, and remembers if the channels can't be used any more after it.
    fn guarded<T>(&mut self, job: impl FnOnce(&mut Swtpm) -> Result<T, TpmError>) -> Result<T, TpmError> {
        if self.broken {
            return Err(TpmError::Broken);
        }
        let result = job(self);
        // An answer that came later would be taken for another's.
        self.broken = !matches!(result, Ok(_) | Err(TpmError::Refused { .. }));
        result
    }

    /// Gives it power. A resume keeps the volatile state that was put there.
    fn init(&mut self, flags: u32) -> Result<(), TpmError> {
        // It changes its buffer only without power.
        self.ask("power off", request::STOP, &[])?;
        let size = (MAX_MESSAGE as u32).to_be_bytes();
        let [_, taken, ..] = self.numbers("set the size of its buffer", request::SET_BUFFERSIZE, &size)?;
        if taken as usize > MAX_MESSAGE {
            return Err(TpmError::Nonsense { what: "set the size of its buffer" });
        }
        self.locality = None;
        self.ask("power on", request::INIT, &flags.to_be_bytes())
    }

    fn blob(&mut self, kind: u32) -> Result<Blob, TpmError> {
        const WHAT: &str = "give its state";
        let mut blob = Blob::default();
        loop {
            let offset = blob.bytes.0.len();
            let payload = [0, kind, offset as u32].map(u32::to_be_bytes).concat();
            let [result, flags, total, len] = self.numbers(WHAT, request::GET_STATEBLOB, &payload)?;
            if result == NONE_THERE && len == 0 && offset == 0 {
                return Ok(blob);
            }
            let (total, len) = (total as usize, len as usize);
            if total > MAX_BLOB || offset + len > total || (len == 0 && offset < total) {
                return Err(TpmError::Nonsense { what: WHAT });
            }
            blob.flags = flags;
            blob.bytes.0.resize(offset + len, 0);
            self.wait(WHAT, self.limits.control).read(&self.control, &mut blob.bytes.0[offset..])?;
            if blob.bytes.0.len() == total {
                return Ok(blob);
            }
        }
    }

    fn transact(&mut self, locality: u8, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        const WHAT: &str = "carry out a command";
        if self.locality != Some(locality) {
            self.ask("change the locality", request::SET_LOCALITY, &[locality])?;
            self.locality = Some(locality);
        }
        let mut wait = self.wait(WHAT, self.limits.command);
        wait.write(&self.data, command)?;
        wait.hears_cancel = true;
        let mut response = vec![0; HEADER];
        let mut canceled = false;
        let mut have = 0;
        while have < HEADER {
            match wait.read_some(&self.data, &mut response[have..])? {
                Some(count) => have += count,
                None => {
                    // Its answer comes when swtpm looks at this channel again: after the command.
                    wait.hears_cancel = false;
                    wait.write(&self.control, &request::CANCEL_TPM_CMD.to_be_bytes())?;
                    canceled = true;
                }
            }
        }
        wait.hears_cancel = false;
        let size =
            response.first_chunk::<HEADER>().map_or(0, |head| u32::from_be_bytes([head[2], head[3], head[4], head[5]]));
        let size = size as usize;
        if !(HEADER..=MAX_MESSAGE).contains(&size) {
            return Err(TpmError::Nonsense { what: WHAT });
        }
        response.resize(size, 0);
        wait.read(&self.data, &mut response[HEADER..])?;
        if canceled {
            // Refusing is no failure: there was nothing left to cancel.
            match self.result("cancel a command") {
                Ok(()) | Err(TpmError::Refused { .. }) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(response)
    }
}

impl TpmBackend for Swtpm {
    fn interrupt(&self) -> Arc<Interrupt> {
        self.interrupt.clone()
    }

    fn power_on(&mut self) -> Result<(), TpmError> {
        self.guarded(|tpm| tpm.init(DELETE_VOLATILE))
    }

    fn execute(&mut self, locality: u8, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.guarded(|tpm| tpm.transact(locality, command))
    }

    fn save(&mut self) -> Result<TpmState, TpmError> {
        self.guarded(|tpm| {
            Ok(TpmState { permanent: tpm.blob(PERMANENT)?, volatile: tpm.blob(VOLATILE)?, saved: tpm.blob(SAVED)? })
        })
    }

    fn restore(&mut self, state: &TpmState) -> Result<(), TpmError> {
        let TpmState { permanent, volatile, saved } = state;
        self.guarded(|tpm| {
            tpm.ask("power off", request::STOP, &[])?;
            for (kind, blob) in [(PERMANENT, permanent), (VOLATILE, volatile), (SAVED, saved)] {
                let Blob { flags, bytes: Bytes(bytes) } = blob;
                if !bytes.is_empty() {
                    let head = [*flags, kind, bytes.len() as u32].map(u32::to_be_bytes).concat();
                    tpm.ask("take the state of a checkpoint", request::SET_STATEBLOB, &[&head, &bytes[..]].concat())?;
                }
            }
            tpm.init(0)
        })
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // It would end anyway when the channels close; asked, it does so in its own order. Nobody waits for it here.
        let _ = self.control.write(&request::SHUTDOWN.to_be_bytes());
    }
}

fn check(what: &'static str, code: [u8; 4]) -> Result<(), TpmError> {
    match u32::from_be_bytes(code) {
        0 => Ok(()),
        code => Err(TpmError::Refused { what, code }),
    }
}

fn numbers(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|index| words.get(index).map_or(0, |word| u32::from_be_bytes(*word)))
}

/// How one exchange waits.
struct Wait {
    what: &'static str,
    deadline: Instant,
    limit: Duration,
    interrupt: Arc<Interrupt>,
    /// Whether a cancel ends the waiting.
    hears_cancel: bool,
}

impl Wait {
    /// Waits until `fd` is ready for `events`. False: the interrupt asks for a cancel.
    fn ready(&self, fd: RawFd, events: libc::c_short) -> Result<bool, TpmError> {
        loop {
            let _ = self.interrupt.bell().read();
            if self.interrupt.is_ended() {
                return Err(TpmError::Ended);
            }
            if self.hears_cancel && self.interrupt.take_cancel() {
                return Ok(false);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TpmError::Silent { what: self.what, limit: self.limit });
            }
            let bell = libc::pollfd { fd: self.interrupt.bell().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let mut fds = [libc::pollfd { fd, events, revents: 0 }, bell];
            let millis = left.as_millis().clamp(1, 60_000) as libc::c_int;
            // SAFETY: `fds` holds two valid entries and outlives the call.
            if unsafe { libc::poll(fds.as_mut_ptr(), 2, millis) } < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(TpmError::Host(error));
                }
            } else if fds[0].revents != 0 {
                return Ok(true);
            }
        }
    }

    fn write(&self, mut socket: &UnixStream, mut bytes: &[u8]) -> Result<(), TpmError> {
        while !bytes.is_empty() {
            match socket.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => drop(self.ready(socket.as_raw_fd(), libc::POLLOUT)?),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(TpmError::Gone),
                Err(e) => return Err(TpmError::Host(e)),
            }
        }
        Ok(())
    }

    /// Reads one byte or more. `None`: the interrupt asks for a cancel.
    fn read_some(&self, mut socket: &UnixStream, buffer: &mut [u8]) -> Result<Option<usize>, TpmError> {
        loop {
            match socket.read(buffer) {
                Ok(0) => return Err(TpmError::Gone),
                Ok(count) => return Ok(Some(count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.ready(socket.as_raw_fd(), libc::POLLIN)? {
                        return Ok(None);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(TpmError::Gone),
                Err(e) => return Err(TpmError::Host(e)),
            }
        }
    }

    fn read(&self, socket: &UnixStream, buffer: &mut [u8]) -> Result<(), TpmError> {
        let mut have = 0;
        while have < buffer.len() {
            have += self.read_some(socket, &mut buffer[have..])?.unwrap_or(0);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "swtpm_tests.rs"]
mod tests;
