//! The console: one virtual machine's screen in a window, its keyboard and pointer, and the commands that belong there.
//!
//! [`run`] owns the thread that calls it (the process's main thread) until the machine has stopped or the person has
//! closed the window. The machine itself lives elsewhere: [`ConsoleSession`] is all the window knows of it.

mod actions;
mod app;
mod dialogs;
mod grab;
mod input;
mod keys;
mod look;
mod overlay;
#[cfg(test)]
mod overlay_tests;
mod pace;
mod pointer;
pub mod screenshot;
mod serial;
mod timeline;
mod transform;
mod view;
mod window;
mod worker;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::Context;
use vmm_core::backend::display::Screen;
use vmm_core::backend::input::InputPort;
use vmm_core::vm::{VmCommand, VmEvent};
use winit::event_loop::{EventLoop, EventLoopProxy};

use crate::theme::Appearance;
use app::{App, Wakeup};
pub use timeline::Point;

/// What draws the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renderer {
    /// pixels and wgpu, on Vulkan.
    Pixels,
    /// egui_glow and a texture, on OpenGL.
    Glow,
}

/// The variable that forces a renderer when [`Options::renderer`] does not.
pub const RENDERER_VARIABLE: &str = "ORANGERY_RENDERER";

impl std::str::FromStr for Renderer {
    type Err = String;

    fn from_str(word: &str) -> Result<Renderer, String> {
        match word {
            "pixels" => Ok(Renderer::Pixels),
            "glow" => Ok(Renderer::Glow),
            _ => Err(format!("there is no renderer '{word}': use pixels or glow")),
        }
    }
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
    /// The machine may go on without a window, because the window can be asked for again ([`Request::Raise`]).
    pub can_keep_running: bool,
    /// Dark or light.
    pub appearance: Appearance,
    /// The text's size, per cent. `None` is 100.
    pub text_scale: Option<u32>,
}

/// Wakes the window's thread, from any thread: call it after something was put in a channel of [`ConsoleSession`],
/// and give it to [`Screen::new`]. Never blocks; harmless when the window is gone.
#[derive(Clone)]
pub struct Waker {
    proxy: EventLoopProxy<Wakeup>,
}

impl Waker {
    /// Makes the window look at its screen and channels.
    pub fn wake(&self) {
        // A loop that has ended has nothing to wake.
        let _ = self.proxy.send_event(Wakeup::News);
    }
}

/// Asks the machine for something; waits until it is done or refused, with the reason as a sentence. The window calls it
/// on a thread of its own.
pub type Command = Box<dyn Fn(VmCommand) -> Result<(), String> + Send>;

/// Types a text as key presses; waits until it is typed. `Err` says which character no key makes. The window calls it
/// on a thread of its own.
pub type TypeText = Box<dyn Fn(&str) -> Result<(), String> + Send>;

/// What takes time and can be asked for in the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saving {
    /// The machine is saved and ended: its next start goes on from there.
    Suspend,
    /// A snapshot of it is taken, with this name and this note.
    Snapshot(String, String),
    /// Another machine goes on from this moment as well.
    Fork,
    /// The machine goes back to this point of its timeline: it ends, and another process goes on from there.
    GoBack(String),
    /// Another machine goes on from this point of its timeline.
    Copy(String),
    /// It has a timeline from now on.
    KeepTimeline,
    /// What it is now is kept on its timeline, if it has one, and then lost.
    Lose(Loss),
}

/// What loses something of a machine that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Its reset button is pressed.
    Reset,
    /// Its plug is pulled.
    PowerOff,
}

impl Loss {
    /// What the machine is asked for.
    pub fn command(self) -> VmCommand {
        match self {
            Loss::Reset => VmCommand::Reset,
            Loss::PowerOff => VmCommand::PowerOff,
        }
    }
}

/// Does one of [`Saving`] and waits until it is done; `progress` hears how much is done of how much, and says whether to go on.
/// `Ok` has what a person is told of it, if anything, `Err` why it was not done, sentences. The window calls it on a thread of its own.
pub type Save = Box<dyn Fn(&Saving, &mut dyn FnMut(u64, u64) -> bool) -> Result<String, String> + Send + Sync>;

/// Reads the points of the machine's timeline, the oldest first. `Err` says why not. The window calls it on a thread of its
/// own.
pub type Past = Box<dyn Fn() -> Result<Vec<Point>, String> + Send + Sync>;

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
    /// Its serial port, as one of its clients; without one the window has no terminal.
    pub serial: Option<UnixStream>,
    /// Its control.
    pub command: Command,
    /// Types a text (Host+V).
    pub type_text: TypeText,
    /// Saves it; absent where it is not kept.
    pub save: Option<Save>,
    /// Its timeline; absent where it is not kept.
    pub past: Option<Past>,
    /// What it tells. Call [`Waker::wake`] after each send. When it is closed, the machine is over.
    pub events: mpsc::Receiver<VmEvent>,
    /// Asked from outside. Call [`Waker::wake`] after each send.
    pub requests: mpsc::Receiver<Request>,
}

/// Opens the window and stays until the machine has stopped ([`vmm_core::vm::Lifecycle::Stopped`] or `events` is closed)
/// and, if there was a problem, the person has read it; or until [`Request::Quit`] comes. `build` starts the machine: it
/// is called once, when there is a display to show it on and before the window opens, so that an early screen is not
/// missed.
///
/// # Errors
/// There is no display, no renderer works on it, or `build` failed. The machine may still run: the caller ends it.
pub fn run(options: Options, build: impl FnOnce(Waker) -> anyhow::Result<ConsoleSession>) -> anyhow::Result<()> {
    let renderer = match (options.renderer, std::env::var(RENDERER_VARIABLE)) {
        (Some(renderer), _) => Some(renderer),
        (None, Ok(word)) if !word.is_empty() => {
            Some(word.parse().map_err(|e| anyhow::anyhow!("{RENDERER_VARIABLE}: {e}"))?)
        }
        _ => None,
    };
    let event_loop = EventLoop::<Wakeup>::with_user_event()
        .build()
        .context("there is no display to open the console's window on; use --headless without one")?;
    let waker = Waker { proxy: event_loop.create_proxy() };
    let session = build(waker.clone())?;
    let mut app = App::new(options, renderer, session, waker)?;
    event_loop.run_app(&mut app).context("the connection to the display broke")?;
    app.into_result()
}
