//! A machine with its console window: the window has the main thread, the machine and its signals have others.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use vmm_core::config::VmConfig;

use super::run::RunError;
use super::signals::Signals;
use super::{Session, Start, Streams};
use crate::console::{self, ConsoleSession, Options, Request, Saving};
use crate::control::{Stream, server};
use crate::manager;

/// How the window of a machine opens.
pub fn options(title: &str, config: &VmConfig) -> Options {
    let drives = config.cdroms.iter().map(|drive| drive.path.clone()).collect();
    // As the person has set the manager up, or as the desktop is.
    let look = manager::kept_settings().unwrap_or_default();
    let (appearance, text_scale) = (look.appearance, Some(look.scale));
    Options { title: title.into(), drives, appearance, text_scale, ..Options::default() }
}

/// Opens the window, starts the machine in it, calls `started`, and stays until the window is done with the machine.
///
/// # Errors
/// There is no display, the machine cannot be built, `started` failed (the machine is then stopped), or the window broke
/// (the machine may then still run).
pub fn show(
    options: Options,
    start: Start<'_>,
    started: impl FnOnce(Arc<Session>, Streams) -> Result<(), RunError>,
    signals: &Signals,
) -> Result<(), RunError> {
    let name = start.identity.name.clone();
    let result = console::run(options, |waker| {
        let (events, inbox) = channel();
        let (requests, asked): (Sender<Request>, _) = channel();
        let (on_screen, on_event) = (waker.clone(), waker.clone());
        let tell = move |event: &_| {
            // The window that does not listen any more is closed.
            let _ = events.send(Clone::clone(event));
            on_event.wake();
        };
        let (session, streams) =
            Session::start(start, move || on_screen.wake(), tell).map_err(|source| RunError::Build { name, source })?;
        let raise = waker.clone();
        let _ = session.raise.set(Box::new(move || {
            let _ = requests.send(Request::Raise);
            raise.wake();
        }));
        let guarded = started(session.clone(), streams).and_then(|()| watch(session.clone(), signals));
        if let Err(error) = guarded {
            super::run::end(&session);
            return Err(error.into());
        }
        let (commanded, typed, saved) = (session.clone(), session.clone(), session.clone());
        let save: console::Save = Box::new(move |what, progress| match what {
            Saving::Suspend => saved.suspend(progress).map(|()| "Suspended".into()),
            Saving::Snapshot(name, note) => {
                saved.take_snapshot(name, note, progress).map(|()| format!("Took the snapshot “{name}”"))
            }
            Saving::GoBack(id) => saved.go_back(id, progress).map(|()| "The machine goes back".into()),
            Saving::Copy(id) => saved.open_copy(id, progress).map(|copy| format!("“{copy}” goes on from there")),
            Saving::KeepTimeline => {
                saved.begin_timeline().map(|()| "A checkpoint is taken every ten minutes now".into())
            }
            Saving::Lose(loss) => saved.lose(*loss, progress).map(|()| String::new()),
            Saving::Fork => saved.fork_anew(progress).map(|fork| format!("“{fork}” goes on from this moment as well")),
        });
        let looked = session.clone();
        let past: console::Past = Box::new(move || looked.past());
        let (serial, port) = UnixStream::pair().map_err(RunError::host("connect the window with the serial port"))?;
        let attached = server::Host::attach(&*session, Stream::Serial, port);
        Ok(ConsoleSession {
            screen: session.screen.clone(),
            keyboard: session.keyboard.clone(),
            pointer: session.pointer.clone(),
            serial: attached.is_ok().then_some(serial),
            command: Box::new(move |command| commanded.send(command)),
            type_text: Box::new(move |text| typed.type_text(text)),
            save: session.library.is_some().then_some(save),
            past: session.library.is_some().then_some(past),
            events: inbox,
            requests: asked,
        })
    });
    result.map_err(|error| error.downcast::<RunError>().unwrap_or_else(RunError::Window))
}

/// Answers signals on a thread of its own while the machine runs.
fn watch(session: Arc<Session>, signals: &Signals) -> Result<(), RunError> {
    let what = "watch this process's signals";
    let signals = signals.share().map_err(RunError::host(what))?;
    // Without it the machine ends as the guest or the window says.
    let answer = move || drop(super::run::wait(&session, &signals));
    thread::Builder::new().name("signals".into()).spawn(answer).map_err(RunError::host(what))?;
    Ok(())
}
