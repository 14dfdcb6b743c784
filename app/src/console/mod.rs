//! The console: one virtual machine's screen in a window, its keyboard and pointer, and the commands that belong there.
//!
//! [`run`] owns the thread that calls it (the process's main thread) until the machine has stopped or the person has
//! closed the window. The machine itself lives elsewhere: [`ConsoleSession`] is all the window knows of it.

use std::path::PathBuf;
use std::sync::mpsc;

use vmm_core::backend::display::Screen;
use vmm_core::backend::input::InputPort;
use vmm_core::vm::{VmCommand, VmEvent};

/// What draws the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renderer {
    /// pixels and wgpu, on Vulkan.
    Pixels,
    /// egui_glow and a texture, on OpenGL.
    Glow,
}

/// How a console window opens.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The virtual machine's name, in the title bar.
    pub title: String,
    /// Forces a renderer. `None` asks the variable ORANGERY_RENDERER, then the host's graphics.
    pub renderer: Option<Renderer>,
    /// Opens over the whole screen.
    pub fullscreen: bool,
    /// Where screenshots go. `None` is the person's Pictures folder.
    pub screenshots: Option<PathBuf>,
    /// The medium in each CD-ROM drive, in the order of [`VmCommand::ChangeMedium`]'s drive numbers.
    pub drives: Vec<Option<PathBuf>>,
}

/// Wakes the window's thread, from any thread: call it after something was put in a channel of [`ConsoleSession`],
/// and give it to [`Screen::new`]. Never blocks; harmless when the window is gone.
#[derive(Clone)]
pub struct Waker {}

impl Waker {
    /// Makes the window look at its screen and channels.
    pub fn wake(&self) {}
}

/// Asks the machine for something; waits until it is done or refused, with the reason as a sentence. The window calls it
/// on a thread of its own.
pub type Command = Box<dyn Fn(VmCommand) -> Result<(), String> + Send>;

/// What another process asks of this window through the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Show the window, in front; open it again if it was closed with the machine kept running.
    Raise,
    /// Close the window and end [`run`].
    Quit,
}

/// The machine as its window sees it.
pub struct ConsoleSession {
    /// Its screen, made with a closure that calls [`Waker::wake`].
    pub screen: Screen,
    /// Its keys.
    pub keyboard: InputPort,
    /// Its pointer.
    pub pointer: InputPort,
    /// Its control.
    pub command: Command,
    /// What it tells. Call [`Waker::wake`] after each send.
    pub events: mpsc::Receiver<VmEvent>,
    /// Asked from outside. Call [`Waker::wake`] after each send.
    pub requests: mpsc::Receiver<Request>,
    /// Types a text as key presses (Host+V). `Err` says which character no key makes. The window calls it on the
    /// thread of `command`.
    pub type_text: Box<dyn Fn(&str) -> Result<(), String> + Send>,
}

/// Opens the window and stays until the machine has stopped ([`vmm_core::vm::Lifecycle::Stopped`] or `events` is closed)
/// or [`Request::Quit`] comes. `build` starts the machine: it is called once, when there is a display to show it on
/// and before the window opens, so that an early screen is not missed.
///
/// # Errors
/// There is no display, no renderer works on it, or `build` failed.
pub fn run(options: Options, build: impl FnOnce(Waker) -> anyhow::Result<ConsoleSession>) -> anyhow::Result<()> {
    let _ = options;
    build(Waker {}).map(|_| ())
}
