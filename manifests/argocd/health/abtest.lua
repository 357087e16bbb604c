-- Health of an ABTest. Whatever the verdict is, it is a good end: users have said what they like.
local status = obj.status
if status == nil or status.phase == nil then
  return { status = "Progressing", message = "Waiting for the operator" }
end
if status.observedGeneration == nil or status.observedGeneration < obj.metadata.generation then
  return { status = "Progressing", message = "The operator has not seen this version yet" }
end

local message = status.phase
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Progressing" and condition.message ~= nil and condition.message ~= "" then
    message = condition.message
  end
end

if status.phase == "Completed" then
  if status.verdict ~= nil then
    message = (status.verdict.result or "") .. ": " .. (status.verdict.message or "")
  end
  return { status = "Healthy", message = message }
end
if status.phase == "Failed" or status.phase == "Aborted" then
  return { status = "Degraded", message = message }
end
-- Argo CD's word for "a person has to act".
if status.paused then
  return { status = "Suspended", message = message }
end
return { status = "Progressing", message = message }
