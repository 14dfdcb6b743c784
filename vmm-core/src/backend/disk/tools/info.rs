//! What an image is, how large it is for the guest and on the host, and what it stands on.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::ToolError;
use crate::backend::disk::foreign::ForeignDisk;
use crate::backend::disk::image::OpenError;
use crate::backend::disk::open::{Format, Identity, identify};
use crate::backend::disk::qcow2::{Roots, look};
use crate::base::explain;

/// One image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Where it is.
    pub path: PathBuf,
    /// The name of its format.
    pub format: &'static str,
    /// Bytes of its virtual disk.
    pub virtual_size: u64,
    /// Bytes that it takes on the host.
    pub host_size: u64,
    /// Bytes of a cluster, where there are any.
    pub cluster: Option<u32>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The image, and all that it stands on.
    pub layers: Vec<Layer>,
    /// Bytes of the host that the images below take, which others may share.
    pub shared_size: u64,
    /// Why a machine can't use it, or what is wrong with it, each in a sentence.
    pub problems: Vec<String>,
}

/// The most layers that are looked at.
const MOST_LAYERS: usize = 256;

/// Looks at an image. It may be in use.
pub fn info(path: &Path) -> Result<Info, ToolError> {
    let mut info = Info { layers: Vec::new(), shared_size: 0, problems: Vec::new() };
    let (roots, mut next) = (Roots::of(path), Some((path.to_path_buf(), None)));
    while let Some((path, format)) = next.take() {
        let top = info.layers.is_empty();
        match layer(&path, format, &roots) {
            Ok((layer, problem, below)) => {
                if !top {
                    info.shared_size += layer.host_size;
                }
                info.layers.push(layer);
                info.problems.extend(problem);
                match below {
                    Ok(below) if info.layers.len() < MOST_LAYERS => next = below,
                    Ok(_) => info.problems.push(format!("it stands on more than {MOST_LAYERS} others")),
                    Err(error) => info.problems.push(explain(&error)),
                }
            }
            Err(error) if top => return Err(error.into()),
            Err(error) => info.problems.push(explain(&error)),
        }
    }
    Ok(info)
}

type Below = Option<(PathBuf, Option<Format>)>;
type Looked = (Layer, Option<String>, Result<Below, OpenError>);

fn layer(path: &Path, format: Option<Format>, roots: &Roots) -> Result<Looked, OpenError> {
    let host = |source| OpenError::Host { action: "open", path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(host)?;
    let host_size = metadata.blocks() * 512;
    let identity = format.map_or_else(|| identify(path), |format| Ok(Identity::Own(format)))?;
    let layer = |format, virtual_size, cluster| Layer { path: path.into(), format, virtual_size, host_size, cluster };
    Ok(match identity {
        Identity::Own(Format::Raw) => (layer("raw", metadata.len(), None), None, Ok(None)),
        Identity::Own(Format::Qcow2) => {
            let looked = look(path, roots)?;
            let below = looked.backing.map(|below| below.map(Some)).unwrap_or(Ok(None));
            (layer("qcow2", looked.size, Some(looked.cluster)), looked.problem, below)
        }
        Identity::Foreign(kind) => {
            let disk = ForeignDisk::open(path, kind)?;
            let words = format!("machines can't use {} images as they are; convert it first", kind.name());
            (layer(kind.name(), disk.size(), None), Some(words), Ok(None))
        }
    })
}
