//! Rows of an embedding table.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use super::{delivered_or, host, numbers, out};
use crate::grad::Recorded;
use crate::kernels::{memory, segments};
use crate::runtime::kernels_take;
use crate::{Error, Result, grad, transfer};

/// The rows `ids` of `x`, `(count, width)`. Returns `(number of ids, width)`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[1f32], [2.0], [3.0]], &Device::Cpu)?;
/// assert_eq!(fauna_shared::nn::select_rows(&x, &[2, 0])?.to_vec2::<f32>()?, [[3.0], [1.0]]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) if an id is not below `count`.
pub fn select_rows(x: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let index = transfer::to_device(ids.to_vec(), ids.len(), x.device())?;
    match (kernels_take(x), x.track_op()) {
        (true, true) => grad::apply2(&x.contiguous()?, &index, Rows),
        (true, false) => {
            let width = x.dim(1)?;
            let rows = host::read(x, |x| gather(x, width, ids))??;
            Ok(Tensor::from_vec(rows, (ids.len(), width), x.device())?)
        }
        (false, _) => Ok(x.index_select(&index, 0)?),
    }
}

/// The rows `ids` of an embedding table, `(count, hidden_size)`, with a gradient of the table. Returns
/// `(number of ids, hidden_size)`.
pub(in crate::nn) struct Rows;

impl Recorded for Rows {}

impl CustomOp2 for Rows {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(
        &self,
        table: &CpuStorage,
        table_layout: &Layout,
        ids: &CpuStorage,
        ids_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, width) = table_layout.shape().dims2()?;
        let ids = ids.as_slice::<u32>()?;
        let Some((start, end)) = ids_layout.contiguous_offsets() else {
            candle_core::bail!("ids that are not contiguous")
        };
        let rows = gather(numbers(table, table_layout)?, width, &ids[start..end]).map_err(out)?;
        Ok((CpuStorage::F32(rows), (end - start, width).into()))
    }

    fn bwd(
        &self,
        table: &Tensor,
        ids: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let width = table.dim(1)?;
        let ids: Vec<u32> = transfer::to_host(ids).map_err(out)?;
        let scatter = |gradient: &mut [f32], accumulate: bool| {
            if !accumulate {
                gradient.fill(0.0);
            }
            Ok(host::saved(grad, |grad| segments::scatter_add(grad, width, &ids, gradient))??)
        };
        Ok((delivered_or(table, scatter)?, None))
    }
}

/// The rows `ids` of `table`, `(count, width)`.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) if an id is not below `count`.
pub(in crate::nn) fn gather(table: &[f32], width: usize, ids: &[u32]) -> Result<Vec<f32>> {
    let count = table.len() / width.max(1);
    let mut rows = memory::zeros(ids.len() * width);
    for (id, row) in ids.iter().zip(rows.chunks_exact_mut(width.max(1))) {
        if *id as usize >= count {
            return Err(Error::input(format!(
                "id {id} is out of range for an embedding table of {count} rows"
            )));
        }
        row.copy_from_slice(&table[*id as usize * width..][..width]);
    }
    Ok(rows)
}
