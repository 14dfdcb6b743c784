//! The keyboard grab of Wayland (keyboard-shortcuts-inhibit-unstable-v1). Some desktops ask the person once.

use raw_window_handle::{HasDisplayHandle, HasWindowHandle, RawDisplayHandle, RawWindowHandle};
use wayland_client::backend::{Backend, ObjectId};
use wayland_client::globals::{GlobalList, GlobalListContents, registry_queue_init};
use wayland_client::protocol::{wl_registry, wl_seat::WlSeat, wl_surface::WlSurface};
use wayland_client::{Connection, Dispatch, EventQueue, Proxy, QueueHandle, delegate_noop};
use wayland_protocols::wp::keyboard_shortcuts_inhibit::zv1::client::{
    zwp_keyboard_shortcuts_inhibit_manager_v1::ZwpKeyboardShortcutsInhibitManagerV1 as Manager,
    zwp_keyboard_shortcuts_inhibitor_v1::ZwpKeyboardShortcutsInhibitorV1 as Inhibitor,
};
use winit::window::Window;

/// Keeps a Wayland desktop from its shortcuts while one window has the focus, or not.
#[derive(Default)]
pub struct ShortcutsInhibitor {
    link: Option<Link>,
    inhibitor: Option<Inhibitor>,
}

/// Our own queue on winit's connection.
struct Link {
    connection: Connection,
    queue: EventQueue<Events>,
    globals: GlobalList,
}

/// Nothing that the compositor tells of these objects matters here.
struct Events;

impl Dispatch<wl_registry::WlRegistry, GlobalListContents> for Events {
    fn event(
        _: &mut Events,
        _: &wl_registry::WlRegistry,
        _: wl_registry::Event,
        _: &GlobalListContents,
        _: &Connection,
        _: &QueueHandle<Events>,
    ) {
    }
}

delegate_noop!(Events: Manager);
delegate_noop!(Events: ignore Inhibitor);
delegate_noop!(Events: ignore WlSeat);

impl ShortcutsInhibitor {
    /// Takes or gives back the desktop's shortcuts; nothing under another window system, or a compositor that has no
    /// such protocol.
    pub fn set(&mut self, window: &Window, hold: bool) {
        if hold == self.inhibitor.is_some() {
            return;
        }
        if !hold {
            if let (Some(inhibitor), Some(link)) = (self.inhibitor.take(), &mut self.link) {
                inhibitor.destroy();
                link.settle();
            }
            return;
        }
        if self.link.is_none() {
            self.link = Link::open(window);
        }
        if let Some(link) = &mut self.link {
            self.inhibitor = link.inhibit(window);
            link.settle();
        }
    }
}

impl Link {
    fn open(window: &Window) -> Option<Link> {
        let RawDisplayHandle::Wayland(handle) = window.display_handle().ok()?.as_raw() else { return None };
        // SAFETY: the display is winit's open connection, which lives as long as the event loop; the console and this
        // link in it are dropped before.
        let backend = unsafe { Backend::from_foreign_display(handle.display.as_ptr().cast()) };
        let connection = Connection::from_backend(backend);
        let (globals, queue) = registry_queue_init::<Events>(&connection).ok()?;
        Some(Link { connection, queue, globals })
    }

    fn inhibit(&self, window: &Window) -> Option<Inhibitor> {
        let RawWindowHandle::Wayland(handle) = window.window_handle().ok()?.as_raw() else { return None };
        // SAFETY: the surface is alive: `window` is borrowed.
        let id = unsafe { ObjectId::from_ptr(WlSurface::interface(), handle.surface.as_ptr().cast()) }.ok()?;
        let surface = WlSurface::from_id(&self.connection, id).ok()?;
        let queue = self.queue.handle();
        let manager: Manager = self.globals.bind(&queue, 1..=1, ()).ok()?;
        let seat: WlSeat = self.globals.bind(&queue, 1..=1, ()).ok()?;
        let inhibitor = manager.inhibit_shortcuts(&surface, &seat, &queue, ());
        manager.destroy();
        Some(inhibitor)
    }

    /// Sends what waits and drops what came. A broken connection shows itself in winit's own loop.
    fn settle(&mut self) {
        let _ = self.connection.flush();
        let _ = self.queue.dispatch_pending(&mut Events);
    }
}
