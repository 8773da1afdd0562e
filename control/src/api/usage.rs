//! What was used, as JSON or CSV.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

use super::authentication::Authenticated;
use super::error::ApiError;
use super::query::{Query, shown};
use super::{Shared, text};
use crate::metering::{By, Month, UsageRow, csv};

/// Usage of a month.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsagePage {
    /// The month, as `2026-11`, of UTC.
    month: String,
    /// What the caller may see of it.
    usage: Vec<UsageRow>,
}

pub(super) async fn usage(
    State(api): State<Shared>,
    Authenticated(caller): Authenticated,
    mut query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let month: Option<Month> = query.parsed("month", "a month such as 2026-11")?;
    let by = query.parsed("by", "consumer, endpoint or service")?.unwrap_or(By::Endpoint);
    let format = query.take("format")?;
    query.end()?;
    let accepted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let as_csv = match format.as_deref() {
        None => accepted.split(',').any(|kind| kind.trim().starts_with("text/csv")),
        Some("csv") => true,
        Some("json") => false,
        Some(other) => {
            let message = format!("format = \"{}\": must be csv or json", shown(other));
            return Err(ApiError::invalid("format", message));
        }
    };
    let month = month.unwrap_or_else(|| api.metering.this_month());
    let rows = tokio::task::spawn_blocking(move || api.metering.usage(&caller, month, by)).await;
    let usage = match rows {
        Ok(Ok(rows)) => rows,
        Ok(Err(problem)) => {
            error!("usage cannot be read: {problem}");
            return Err(ApiError::internal("usage cannot be read; control's log says why"));
        }
        Err(_) => return Err(ApiError::internal("the call failed for a fault of control's; its log has more")),
    };
    if as_csv {
        return Ok(text("text/csv; charset=utf-8", csv(&usage)));
    }
    Ok(Json(UsagePage { month: month.to_string(), usage }).into_response())
}
