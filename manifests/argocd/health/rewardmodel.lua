-- Health of a RewardModel. Gated is not: Generations that name it wait for a judge that they may not use.
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

if status.phase == "Ready" then
  return { status = "Healthy", message = message }
end
if status.phase == "Gated" or status.phase == "Failed" or status.phase == "Aborted" then
  return { status = "Degraded", message = message }
end
if status.phase == "Suspended" then
  return { status = "Suspended", message = message }
end
return { status = "Progressing", message = message }
