//! Where the guest's picture lies in the window, and which guest pixel is under the pointer. All in physical pixels.

use vmm_core::backend::display::Mode;
use vmm_core::backend::input::ABS_MAX;

/// How the guest's picture is sized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ViewMode {
    /// As large as the window allows, its shape kept.
    #[default]
    Scaled,
    /// One guest pixel on one physical pixel; what does not fit follows the pointer.
    OneToOne,
}

/// The part of the window that is for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Area {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

impl Area {
    /// Whether a point is in it.
    pub fn contains(self, x: f64, y: f64) -> bool {
        x >= self.x && y >= self.y && x < self.x + self.width && y < self.y + self.height
    }
}

/// How guest pixels become window pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Each window pixel shows one guest pixel: the scale is whole.
    Nearest,
    /// Neighbours are blended where a window pixel lies between them.
    Smooth,
}

/// A scale this little above a whole number is taken as that number: a thin border is better than a blurred picture.
const SNAP: f64 = 1.04;

/// Where the picture is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// Left edge, whole.
    pub x: f64,
    /// Upper edge, whole.
    pub y: f64,
    /// Width in the window, whole.
    pub width: f64,
    /// Height in the window, whole.
    pub height: f64,
    /// See [`Filter`].
    pub filter: Filter,
    mode: Mode,
}

impl Placement {
    /// Places a picture of `mode` in `area`. `pan` says which part of a picture larger than the area shows, on each
    /// axis, from 0 (left, top) to 1 (right, bottom). `None` when there is no room or no picture.
    pub fn new(view: ViewMode, area: Area, mode: Mode, pan: (f64, f64)) -> Option<Placement> {
        let (guest_width, guest_height) = (f64::from(mode.width), f64::from(mode.height));
        if mode.width == 0 || mode.height == 0 || area.width < 1.0 || area.height < 1.0 {
            return None;
        }
        let scale = match view {
            ViewMode::OneToOne => 1.0,
            ViewMode::Scaled => snap((area.width / guest_width).min(area.height / guest_height)),
        };
        let width = (guest_width * scale).round().max(1.0);
        let height = (guest_height * scale).round().max(1.0);
        Some(Placement {
            x: (area.x + offset(area.width, width, pan.0)).round(),
            y: (area.y + offset(area.height, height, pan.1)).round(),
            width,
            height,
            filter: if scale.fract() == 0.0 { Filter::Nearest } else { Filter::Smooth },
            mode,
        })
    }

    /// The absolute axes' values (0 to [`ABS_MAX`]) for a point of the window; outside the picture, its nearest edge.
    pub fn to_absolute(self, x: f64, y: f64) -> (u32, u32) {
        let axis = |at: f64, from: f64, length: f64, pixels: u32| {
            // The centre of the guest pixel under the pointer, so that the guest's own rounding finds the same pixel.
            let pixels = f64::from(pixels);
            let pixel = ((at - from) / length * pixels).floor().clamp(0.0, pixels - 1.0);
            ((pixel + 0.5) / pixels * f64::from(ABS_MAX)).round() as u32
        };
        (axis(x, self.x, self.width, self.mode.width), axis(y, self.y, self.height, self.mode.height))
    }

    /// How many window pixels a guest pixel covers.
    pub fn scale(self) -> f64 {
        self.width / f64::from(self.mode.width)
    }

    /// The window rectangle (x, y, width, height) of a rectangle of guest pixels, which may lie outside the picture.
    pub fn to_window(self, x: i32, y: i32, width: u32, height: u32) -> (f64, f64, f64, f64) {
        let (sx, sy) = (self.scale(), self.height / f64::from(self.mode.height));
        (
            (self.x + f64::from(x) * sx).round(),
            (self.y + f64::from(y) * sy).round(),
            (f64::from(width) * sx).round(),
            (f64::from(height) * sy).round(),
        )
    }
}

/// Where a pointer at `at` puts the pan of an axis, so that every guest pixel can be reached.
pub fn pan_for(at: f64, from: f64, length: f64) -> f64 {
    // The outer tenths count as the edges: the corners need no pixel-exact aim.
    let fraction = (at - from) / length.max(1.0);
    ((fraction - 0.1) / 0.8).clamp(0.0, 1.0)
}

fn offset(room: f64, length: f64, pan: f64) -> f64 {
    if length <= room { (room - length) / 2.0 } else { (room - length) * pan }
}

fn snap(scale: f64) -> f64 {
    let whole = scale.floor();
    if whole >= 1.0 && scale < whole * SNAP { whole } else { scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area { x: 0.0, y: 40.0, width: 1280.0, height: 800.0 };

    fn place(view: ViewMode, area: Area, width: u32, height: u32, pan: (f64, f64)) -> Placement {
        Placement::new(view, area, Mode { width, height }, pan).unwrap()
    }

    #[test]
    fn a_picture_of_the_areas_size_fills_it_pixel_by_pixel() {
        let p = place(ViewMode::Scaled, AREA, 1280, 800, (0.0, 0.0));
        assert_eq!((p.x, p.y, p.width, p.height, p.filter), (0.0, 40.0, 1280.0, 800.0, Filter::Nearest));
    }

    #[test]
    fn a_scaled_picture_keeps_its_shape_and_is_centred() {
        let p = place(ViewMode::Scaled, AREA, 1000, 1000, (0.0, 0.0));
        assert_eq!((p.x, p.y, p.width, p.height, p.filter), (240.0, 40.0, 800.0, 800.0, Filter::Smooth));
    }

    #[test]
    fn a_scale_just_above_a_whole_number_becomes_that_number() {
        let p = place(ViewMode::Scaled, AREA, 640, 390, (0.0, 0.0));
        assert_eq!((p.width, p.height, p.filter), (1280.0, 780.0, Filter::Nearest));
        let p = place(ViewMode::Scaled, AREA, 1250, 780, (0.0, 0.0));
        assert_eq!((p.width, p.filter), (1250.0, Filter::Nearest));
    }

    #[test]
    fn one_to_one_lies_on_whole_pixels_even_in_an_odd_area() {
        let area = Area { width: 1281.0, height: 801.0, ..AREA };
        let p = place(ViewMode::OneToOne, area, 720, 400, (0.0, 0.0));
        assert_eq!((p.x.fract(), p.y.fract(), p.width, p.filter), (0.0, 0.0, 720.0, Filter::Nearest));
    }

    #[test]
    fn panning_brings_both_corners_of_a_large_picture_into_view() {
        let p = place(ViewMode::OneToOne, AREA, 1920, 1080, (0.0, 0.0));
        assert_eq!((p.x, p.y), (0.0, 40.0));
        let p = place(ViewMode::OneToOne, AREA, 1920, 1080, (1.0, 1.0));
        assert_eq!((p.x + p.width, p.y + p.height), (1280.0, 840.0));
        assert_eq!((pan_for(0.0, 0.0, 1280.0), pan_for(1279.0, 0.0, 1280.0)), (0.0, 1.0));
    }

    #[test]
    fn the_absolute_position_names_the_pixel_under_the_pointer() {
        let p = place(ViewMode::Scaled, AREA, 2560, 1600, (0.0, 0.0));
        for (x, y) in [(0.0, 40.0), (1279.5, 839.9), (640.0, 440.0), (-50.0, 9999.0)] {
            let (ax, ay) = p.to_absolute(x, y);
            let guest = |value: u32, pixels: f64| (f64::from(value) / f64::from(ABS_MAX) * pixels).floor();
            let under = |at: f64, from: f64, pixels: f64| ((at - from) * 2.0).floor().clamp(0.0, pixels - 1.0);
            assert_eq!(guest(ax, 2560.0), under(x, 0.0, 2560.0));
            assert_eq!(guest(ay, 1600.0), under(y, 40.0, 1600.0));
        }
    }

    #[test]
    fn no_room_and_no_picture_place_nothing() {
        assert!(Placement::new(ViewMode::Scaled, Area::default(), Mode { width: 8, height: 8 }, (0.0, 0.0)).is_none());
        assert!(Placement::new(ViewMode::Scaled, AREA, Mode { width: 0, height: 8 }, (0.0, 0.0)).is_none());
    }
}
