//! `/v1/params`: server parameters, which are the attributes of `/SERVER/Parameters` (interface §4, PAR-001 to PAR-011).
//!
//! Always holds: a bad value given here is refused, naming range and what to try; what reached the tree by another way
//! is shown as it stands, beside the value in force. A change is an ordinary write: on the backup it is refused (PAR-004).

use axum::{
    body::Body,
    extract::{Path, State},
    http::Uri,
    response::Response,
};
use serde_json::{Value as Json, json};

use super::{Api, backend::Failure, ds, http, query::Query, routes};
use crate::ds::params::{self, ParamError, Parameters};

impl From<ParamError> for Failure {
    fn from(error: ParamError) -> Self {
        match error {
            ParamError::Unknown { .. } => Self::NotFound(error.to_string()),
            ParamError::Withdrawn(_) | ParamError::Value(_) => Self::Malformed(error.to_string()),
            ParamError::Edit(error) => error.into(),
        }
    }
}

pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Result<Response, Failure> {
    Query::parse(uri.query(), &[])?;
    let parameters = Parameters::read(&api.backend.tree().snapshot());
    Ok(http::ok(&json!({ "parameters": parameters.to_json() })))
}

pub(super) async fn get(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Failure> {
    Ok(http::ok(&Parameters::read(&api.backend.tree().snapshot()).get_json(&name)?))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SetBody {
    value: Json,
}

pub(super) async fn set(
    State(api): State<Api>,
    Path(name): Path<String>,
    uri: Uri,
    body: Body,
) -> Result<Response, Failure> {
    let query = Query::parse(uri.query(), &["ack", "timeout"])?;
    let SetBody { value } = routes::small(&api, body).await?;
    let text = match value {
        Json::String(text) => text,
        Json::Number(number) => number.to_string(),
        Json::Bool(on) => if on { "Yes" } else { "No" }.to_owned(),
        other => {
            return Err(Failure::Malformed(format!(
                "\"value\" is {other}, expected a text. Try: {{\"value\":\"10\"}}"
            )));
        }
    };
    let operation = params::set(&api.backend.tree().snapshot(), &name, &text)?;
    let done = ds::write(&api, &query, vec![(0, operation)]).await?;
    let mut answer = ds::written(None, &done);
    let spec = params::find(&name)?;
    answer["name"] = spec.name.into();
    answer["value"] = text.into();
    answer["restart"] = (spec.effect != params::Effect::Dynamic).into();
    Ok(http::ok(&answer))
}
