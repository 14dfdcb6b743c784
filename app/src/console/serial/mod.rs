//! The machine's serial port in the console's window: a thread that listens on it and keeps a [`Terminal`], and what the
//! window shows of that.

mod filter;
mod keys;
mod terminal;
pub mod view;

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use alacritty_terminal::term::TermMode;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use winit::keyboard::{Key, ModifiersState};

use super::Waker;
pub use terminal::{Size, Terminal};

/// What is read at once, bytes: the window waits for the terminal no longer than this takes.
const CHUNK: usize = 4096;
/// What may wait for a guest that does not read, bytes.
const MAX_OUTGOING: usize = 1 << 20;

/// The serial port of one machine.
pub struct Serial {
    shared: Arc<Shared>,
    stream: UnixStream,
}

struct Shared {
    terminal: Mutex<Terminal>,
    outgoing: Mutex<VecDeque<u8>>,
    /// There is something to send.
    wake: OwnedFd,
    /// A person looks at it.
    shown: AtomicBool,
    /// There is something that the window has not drawn, and it has been woken for it.
    news: AtomicBool,
}

impl Shared {
    fn terminal(&self) -> MutexGuard<'_, Terminal> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outgoing(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the guest sent.
    fn receive(&self, bytes: &[u8], waker: &Waker) {
        let answers = self.terminal().feed(bytes);
        if !self.shown.load(Ordering::Acquire) {
            // Another terminal at the same port may answer; one that nobody looks at does not.
            return;
        }
        let mut outgoing = self.outgoing();
        if outgoing.len() + answers.len() <= MAX_OUTGOING {
            outgoing.extend(answers.as_bytes());
        }
        drop(outgoing);
        if !self.news.swap(true, Ordering::AcqRel) {
            waker.wake();
        }
    }
}

impl Serial {
    /// Listens on `stream`, one of the port's clients. `waker` is called when there is something new to be seen, but only
    /// while the terminal is shown.
    ///
    /// # Errors
    /// The host has no more threads or descriptors.
    pub fn start(stream: UnixStream, waker: Waker) -> io::Result<Serial> {
        stream.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            terminal: Mutex::default(),
            outgoing: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            shown: AtomicBool::new(false),
            news: AtomicBool::new(false),
        });
        let (theirs, of_thread) = (stream.try_clone()?, shared.clone());
        // Whatever ends the connection ends the thread; what came until then stays on the screen.
        let work = move || drop(run(&theirs, &of_thread, &waker));
        thread::Builder::new().name("console-serial".into()).spawn(work)?;
        Ok(Serial { shared, stream })
    }

    /// Whether a person looks at it.
    pub fn show(&self, shown: bool) {
        self.shared.shown.store(shown, Ordering::Release);
    }

    /// Whether there is something new to be seen since it was last asked.
    pub fn take_news(&self) -> bool {
        self.shared.news.swap(false, Ordering::AcqRel)
    }

    /// The terminal; its thread waits meanwhile, and nobody else does.
    pub fn terminal(&self) -> MutexGuard<'_, Terminal> {
        self.shared.terminal()
    }

    /// Sends what was typed, as far as there is room, and shows where the guest writes.
    fn send(&self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let mut terminal = self.terminal();
        terminal.clear_selection();
        terminal.scroll_to_end(false);
        drop(terminal);
        let mut outgoing = self.shared.outgoing();
        if outgoing.len() + bytes.len() > MAX_OUTGOING {
            return false;
        }
        outgoing.extend(bytes);
        drop(outgoing);
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
        true
    }

    /// A key was pressed: see [`keys::encode`]. With Shift the keys that turn pages turn those of what was.
    pub fn key(&self, key: &Key, latin: Option<char>, held: ModifiersState) {
        use winit::keyboard::NamedKey;
        let mode = self.terminal().mode();
        let own = held == ModifiersState::SHIFT && !mode.contains(TermMode::ALT_SCREEN);
        match key {
            Key::Named(NamedKey::PageUp) if own => self.terminal().scroll_page(true),
            Key::Named(NamedKey::PageDown) if own => self.terminal().scroll_page(false),
            Key::Named(NamedKey::Home) if own => self.terminal().scroll_to_end(true),
            Key::Named(NamedKey::End) if own => self.terminal().scroll_to_end(false),
            _ => _ = self.send(&keys::encode(key, latin, held, mode)),
        }
    }

    /// Types a text from the clipboard; `false` if the guest has not read enough of what was typed before.
    pub fn paste(&self, text: &str) -> bool {
        let mode = self.terminal().mode();
        self.send(&keys::paste(text, mode))
    }

    /// The wheel turned by so many lines, upwards if positive: through what was, or, where a program has the whole screen,
    /// as its cursor keys.
    pub fn wheel(&self, lines: i32) {
        let mode = self.terminal().mode();
        if !mode.contains(TermMode::ALT_SCREEN | TermMode::ALTERNATE_SCROLL) {
            self.terminal().scroll(lines);
            return;
        }
        let key = Key::Named(if lines > 0 {
            winit::keyboard::NamedKey::ArrowUp
        } else {
            winit::keyboard::NamedKey::ArrowDown
        });
        let one = keys::encode(&key, None, ModifiersState::empty(), mode);
        self.send(&one.repeat(lines.unsigned_abs().min(terminal::MIN_SIZE.lines as u32) as usize));
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        // Ends the thread, which has a descriptor of its own.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn run(stream: &UnixStream, shared: &Shared, waker: &Waker) -> io::Result<()> {
    let mut chunk = [0; CHUNK];
    loop {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !shared.outgoing().is_empty());
        let mut fds = [
            PollFd::from_borrowed_fd(stream.as_fd(), flags),
            PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
        match rustix::io::read(stream, &mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => shared.receive(&chunk[..count], waker),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut outgoing = shared.outgoing();
        let (front, _) = outgoing.as_slices();
        if front.is_empty() {
            continue;
        }
        match rustix::io::write(stream, front) {
            Ok(count) => drop(outgoing.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
