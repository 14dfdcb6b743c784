//! What draws the console window: the guest's picture, its pointer and the overlay, by one of two renderers.

mod glow;
mod pixels;

use std::sync::Arc;

use egui::{ClippedPrimitive, TexturesDelta};
use vmm_core::backend::display::{CursorImage, Mode, Rect};
use winit::event_loop::ActiveEventLoop;
use winit::platform::wayland::ActiveEventLoopExtWayland;
use winit::window::{Window, WindowAttributes};

use super::Renderer;
use super::transform::{Filter, Placement};

/// Why a renderer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The host's graphics lack something.
    #[error("{what}: {why}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the graphics said.
        why: String,
    },
    /// The picture is larger than a texture can be.
    #[error(
        "the guest's screen of {width}×{height} pixels is larger than the host's graphics can show ({max} on a side)"
    )]
    TooLarge {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// The most pixels on a side.
        max: u32,
    },
}

impl ViewError {
    fn host(what: &'static str, why: impl ToString) -> ViewError {
        ViewError::Host { what, why: why.to_string() }
    }
}

/// Where something lies in the window, physical pixels: x, y, width, height.
pub type WindowRect = (f64, f64, f64, f64);

/// All that one drawing of the window shows, but for the pictures themselves.
pub struct Scene<'a> {
    /// What is seen where nothing else is: red, green, blue.
    pub backdrop: [u8; 3],
    /// The guest's picture.
    pub picture: Option<Placement>,
    /// The guest's pointer.
    pub cursor: Option<WindowRect>,
    /// The toolbar and everything else of egui.
    pub overlay: &'a [ClippedPrimitive],
    /// egui's points in physical pixels.
    pub pixels_per_point: f32,
}

/// Shows a guest's screen in a window.
///
/// The picture and the pointer are kept in textures: only what changed is handed over, and drawing again (an exposed
/// window, a moved toolbar) needs nothing new.
pub trait FramebufferView {
    /// The window has a new size, physical pixels.
    fn resize(&mut self, width: u32, height: u32);

    /// Takes over the damaged parts of a picture of `mode`, XRGB8888 rows of `mode.width * 4` bytes. A mode other than
    /// the last one's drops the old picture. Only copies: the guest's device waits meanwhile.
    ///
    /// # Errors
    /// The picture is too large; the view stays usable and shows none.
    fn upload(&mut self, mode: Mode, pixels: &[u8], damage: &[Rect]) -> Result<(), ViewError>;

    /// Takes over the pointer's picture.
    ///
    /// # Errors
    /// See [`FramebufferView::upload`].
    fn upload_cursor(&mut self, image: &CursorImage) -> Result<(), ViewError>;

    /// Takes over egui's textures. What it frees is freed before the next drawing.
    fn update_overlay(&mut self, textures: TexturesDelta);

    /// Draws the window and presents it.
    ///
    /// # Errors
    /// The graphics failed: the view is of no use any more.
    fn draw(&mut self, window: &Window, scene: &Scene<'_>) -> Result<(), ViewError>;

    /// Whether the CPU draws: then every drawing is dear.
    fn is_software(&self) -> bool;

    /// The longest side of a texture.
    fn max_texture_side(&self) -> u32;

    /// What draws, as the graphics call it.
    fn description(&self) -> String;
}

/// Which renderer suits this host: pixels where Vulkan runs on a real graphics card and the window's size is the
/// window's own (Wayland), glow elsewhere.
pub fn suitable(event_loop: &ActiveEventLoop) -> Renderer {
    if event_loop.is_wayland() && pixels::has_hardware() { Renderer::Pixels } else { Renderer::Glow }
}

/// Opens a window (as `attributes` say) with what draws in it.
///
/// # Errors
/// The window or the renderer could not be made.
pub fn open(
    renderer: Renderer,
    event_loop: &ActiveEventLoop,
    attributes: WindowAttributes,
) -> Result<(Arc<Window>, Box<dyn FramebufferView>), ViewError> {
    match renderer {
        Renderer::Pixels => pixels::open(event_loop, attributes),
        Renderer::Glow => glow::open(event_loop, attributes),
    }
}

fn is_nearest(placement: &Placement) -> bool {
    placement.filter == Filter::Nearest
}

/// A rectangle of the window in clip space: left, lower edge, width, height, the y axis upwards.
fn clip_space((x, y, width, height): WindowRect, window: (u32, u32)) -> [f32; 4] {
    let (w, h) = (f64::from(window.0.max(1)), f64::from(window.1.max(1)));
    [
        (2.0 * x / w - 1.0) as f32,
        (1.0 - 2.0 * (y + height) / h) as f32,
        (2.0 * width / w) as f32,
        (2.0 * height / h) as f32,
    ]
}

/// The bytes of `rect` in a picture of `mode`: from its first pixel to its last. `None` if it is not all there.
fn rows_of(rect: Rect, mode: Mode, pixels: &[u8]) -> Option<&[u8]> {
    let stride = mode.width as usize * 4;
    let first = rect.y as usize * stride + rect.x as usize * 4;
    let length = (rect.height as usize).checked_sub(1)? * stride + rect.width as usize * 4;
    pixels.get(first..first.checked_add(length)?)
}

/// What of `damage` is to be uploaded: clipped to the picture, nothing empty; all of it when the texture is new.
fn uploads(mode: Mode, is_new: bool, damage: &[Rect]) -> Vec<Rect> {
    if is_new {
        return vec![Rect::full(mode)];
    }
    damage.iter().map(|r| r.clip(mode)).filter(|r| !r.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODE: Mode = Mode { width: 4, height: 3 };

    fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
        Rect { x, y, width, height }
    }

    #[test]
    fn only_damage_is_uploaded_and_all_of_a_new_picture() {
        let damage = [rect(1, 1, 9, 1), rect(4, 0, 1, 1), rect(0, 0, 0, 3)];
        assert_eq!(uploads(MODE, false, &damage), [rect(1, 1, 3, 1)]);
        assert_eq!(uploads(MODE, true, &damage), [Rect::full(MODE)]);
        assert!(uploads(MODE, false, &[]).is_empty());
    }

    #[test]
    fn the_bytes_of_a_rectangle_start_and_end_with_its_corners() {
        let pixels: Vec<u8> = (0..48).collect();
        let rows = rows_of(rect(1, 1, 2, 2), MODE, &pixels).unwrap();
        assert_eq!((rows[0], rows.last().copied(), rows.len()), (20, Some(43), 24));
        assert_eq!(rows_of(rect(0, 0, 4, 3), MODE, &pixels[..40]), None);
        assert_eq!(rows_of(rect(0, 0, 4, 0), MODE, &pixels), None);
    }

    #[test]
    fn clip_space_covers_the_window_from_corner_to_corner() {
        assert_eq!(clip_space((0.0, 0.0, 200.0, 100.0), (200, 100)), [-1.0, -1.0, 2.0, 2.0]);
        assert_eq!(clip_space((100.0, 0.0, 100.0, 50.0), (200, 100)), [0.0, 0.0, 1.0, 1.0]);
    }
}
